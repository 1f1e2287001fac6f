"""Qwen3 as published on Hugging Face: config, tensor names, and the axes of our parameters."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from atod_jax.models.transformer import ModelConfig

_FIELDS = {  # ours -> theirs
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "intermediate_size": "intermediate_size",
    "rms_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
}

# Fields that change the computation, with the only value this decoder implements.
_FIXED = {
    "model_type": "qwen3",
    "attention_bias": False,
    "use_sliding_window": False,
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "quantization_config": None,
}

# Parameter-name pattern -> logical axes; every parameter matches exactly one pattern.
AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(embed|head)/embedding", ("vocab", "embed")),
    (r"norm/scale", (None,)),
    (r"last/(attn|mlp)_norm/scale", (None,)),
    (r"last/attn/[qk]_norm/scale", (None,)),
    (r"last/attn/q/kernel", ("embed", "heads", None)),
    (r"last/attn/[kv]/kernel", ("embed", "kv_heads", None)),
    (r"last/attn/o/kernel", ("heads", None, "embed")),
    (r"last/mlp/(gate|up)/kernel", ("embed", "mlp")),
    (r"last/mlp/down/kernel", ("mlp", "embed")),
    (r"layers/(attn|mlp)_norm/scale", ("layers", None)),
    (r"layers/attn/[qk]_norm/scale", ("layers", None)),
    (r"layers/attn/q/kernel", ("layers", "embed", "heads", None)),
    (r"layers/attn/[kv]/kernel", ("layers", "embed", "kv_heads", None)),
    (r"layers/attn/o/kernel", ("layers", "heads", None, "embed")),
    (r"layers/mlp/(gate|up)/kernel", ("layers", "embed", "mlp")),
    (r"layers/mlp/down/kernel", ("layers", "mlp", "embed")),
)

_BLOCK = {  # parameter of one block -> (tensor of one layer, axes of ours that are inputs)
    "attn_norm/scale": ("input_layernorm", None),
    "attn/q/kernel": ("self_attn.q_proj", 1),
    "attn/k/kernel": ("self_attn.k_proj", 1),
    "attn/v/kernel": ("self_attn.v_proj", 1),
    "attn/q_norm/scale": ("self_attn.q_norm", None),
    "attn/k_norm/scale": ("self_attn.k_norm", None),
    "attn/o/kernel": ("self_attn.o_proj", 2),
    "mlp_norm/scale": ("post_attention_layernorm", None),
    "mlp/gate/kernel": ("mlp.gate_proj", 1),
    "mlp/up/kernel": ("mlp.up_proj", 1),
    "mlp/down/kernel": ("mlp.down_proj", 1),
}


class Entry(NamedTuple):
    """One tensor of a Hugging Face checkpoint and where it lives in our parameters."""

    hf_name: str
    hf_shape: tuple[int, ...]
    path: tuple[str, ...]
    layer: int | None  # index along the leading axis of a stacked parameter
    shape: tuple[int, ...]  # ours, without the leading axis
    transposed: bool  # theirs is [out, in]; ours is [*in, *out]


def config_from_hf(hf: Mapping[str, Any], *, dtype: str = "float32") -> ModelConfig:
    """The ModelConfig of a parsed config.json.

    Raises:
      ValueError: a needed field is missing, or a field asks for something not implemented (rope
        scaling, sliding windows, attention biases, another activation, quantised weights).
    """
    missing = [theirs for theirs in _FIELDS.values() if theirs not in hf]
    if missing:
        raise ValueError(f"config.json lacks {missing}; a Qwen3 config names them all")
    for name, value in _FIXED.items():
        if hf.get(name, value) != value:
            raise ValueError(f"config.json: {name}={hf[name]!r} is not supported, only {value!r}")
    if any(kind != "full_attention" for kind in hf.get("layer_types") or ()):
        raise ValueError(f"config.json: layer_types={hf['layer_types']}: only full_attention is")
    fields = {ours: hf[theirs] for ours, theirs in _FIELDS.items()}
    return ModelConfig(**fields, rope_theta=_rope_theta(hf), dtype=dtype)


def _rope_theta(hf: Mapping[str, Any]) -> float:
    """The base, from `rope_parameters` (transformers 5) or the two older fields."""
    rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"config.json: rope type {kind!r} is not supported, only 'default'")
    theta = rope.get("rope_theta", hf.get("rope_theta"))
    if theta is None:
        raise ValueError("config.json lacks rope_theta (also looked into rope_parameters)")
    return float(theta)


def config_to_hf(config: ModelConfig, *, dtype: str) -> dict[str, Any]:
    """A config.json that gives the same model in transformers; `dtype` is of the saved tensors."""
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    fields = {theirs: getattr(config, ours) for ours, theirs in _FIELDS.items()}
    fixed = {k: v for k, v in _FIXED.items() if v is not None}
    return {
        "architectures": ["Qwen3ForCausalLM"],
        **fixed,
        **fields,
        "rope_parameters": rope,
        "rope_theta": config.rope_theta,
        "dtype": dtype,
    }


def tensor_map(config: ModelConfig) -> Iterator[Entry]:
    """Every tensor of the checkpoint of `config`, in layer order."""
    table = (config.vocab_size, config.hidden_size)
    yield Entry("model.embed_tokens.weight", table, ("embed", "embedding"), None, table, False)
    shapes = _block_shapes(config)
    for i in range(config.num_layers):
        stacked = i < config.num_layers - 1
        root, layer = ("layers", i) if stacked else ("last", None)
        for ours, (theirs, inputs) in _BLOCK.items():
            shape = shapes[ours]
            yield Entry(
                hf_name=f"model.layers.{i}.{theirs}.weight",
                hf_shape=_hf_shape(shape, inputs),
                path=(root, *ours.split("/")),
                layer=layer,
                shape=shape,
                transposed=inputs is not None,
            )
    width = (config.hidden_size,)
    yield Entry("model.norm.weight", width, ("norm", "scale"), None, width, False)
    if not config.tie_embeddings:
        yield Entry("lm_head.weight", table, ("head", "embedding"), None, table, False)


def _block_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    width, wide, head = config.hidden_size, config.intermediate_size, config.head_dim
    return {
        "attn_norm/scale": (width,),
        "attn/q/kernel": (width, config.num_heads, head),
        "attn/k/kernel": (width, config.num_kv_heads, head),
        "attn/v/kernel": (width, config.num_kv_heads, head),
        "attn/q_norm/scale": (head,),
        "attn/k_norm/scale": (head,),
        "attn/o/kernel": (config.num_heads, head, width),
        "mlp_norm/scale": (width,),
        "mlp/gate/kernel": (width, wide),
        "mlp/up/kernel": (width, wide),
        "mlp/down/kernel": (wide, width),
    }


def _hf_shape(shape: tuple[int, ...], inputs: int | None) -> tuple[int, ...]:
    if inputs is None:
        return shape
    return (math.prod(shape[inputs:]), math.prod(shape[:inputs]))
