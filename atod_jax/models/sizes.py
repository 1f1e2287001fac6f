"""The published sizes of each family, as their config.json states them.

For dry runs: `build(config_from_hf(published("Qwen3-8B")))` knows every shape without a download.
"""

from typing import Any

_COMMON = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "vocab_size": 151936,
    "use_sliding_window": False,
    "attention_dropout": 0.0,
}
_QWEN2 = _COMMON | {"model_type": "qwen2"}
_QWEN3 = _COMMON | {
    "model_type": "qwen3",
    "num_key_value_heads": 8,
    "head_dim": 128,
    "attention_bias": False,
}
_MOE = _QWEN3 | {
    "model_type": "qwen3_moe",
    "num_key_value_heads": 4,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}

_LLAMA = {
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "vocab_size": 128256,
    "rope_theta": 5e5,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
_SMOL = {"num_key_value_heads": 3, "vocab_size": 49152, "rope_theta": 1e5, "rope_scaling": None}


def _sized(
    base: dict[str, Any], width: int, layers: int, heads: int, wide: int, *, tied: bool, **more: Any
) -> dict[str, Any]:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return base | sizes | {"intermediate_size": wide, "tie_word_embeddings": tied} | more


# Source: the config.json of each model card at huggingface.co (Qwen, meta-llama, HuggingFaceTB).
SIZES: dict[str, dict[str, Any]] = {
    "Qwen2.5-0.5B": _sized(_QWEN2, 896, 24, 14, 4864, tied=True, num_key_value_heads=2),
    "Qwen2.5-1.5B": _sized(_QWEN2, 1536, 28, 12, 8960, tied=True, num_key_value_heads=2),
    "Qwen2.5-3B": _sized(_QWEN2, 2048, 36, 16, 11008, tied=True, num_key_value_heads=2),
    "Qwen2.5-7B": _sized(
        _QWEN2, 3584, 28, 28, 18944, tied=False, num_key_value_heads=4, vocab_size=152064
    ),
    "Qwen3-0.6B": _sized(_QWEN3, 1024, 28, 16, 3072, tied=True),
    "Qwen3-1.7B": _sized(_QWEN3, 2048, 28, 16, 6144, tied=True),
    "Qwen3-4B": _sized(_QWEN3, 2560, 36, 32, 9728, tied=True),
    "Qwen3-8B": _sized(_QWEN3, 4096, 36, 32, 12288, tied=False),
    "Qwen3-14B": _sized(_QWEN3, 5120, 40, 40, 17408, tied=False),
    "Qwen3-32B": _sized(_QWEN3, 5120, 64, 64, 25600, tied=False),
    "Qwen3-30B-A3B": _sized(_MOE, 2048, 48, 32, 6144, tied=False, moe_intermediate_size=768),
    "Llama-3.2-1B": _sized(_LLAMA, 2048, 16, 32, 8192, tied=True),
    "Llama-3.2-3B": _sized(_LLAMA, 3072, 28, 24, 8192, tied=True),
    "SmolLM2-135M": _sized(_LLAMA | _SMOL, 576, 30, 9, 1536, tied=True),
}


def published(name: str) -> dict[str, Any]:
    """The config.json fields of a published model, by its name without the organisation.

    Raises:
      ValueError: an unknown name, with those there are.
    """
    if name not in SIZES:
        raise ValueError(f"no published size {name!r}; there are {', '.join(SIZES)}")
    return dict(SIZES[name])
