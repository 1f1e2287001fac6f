"""config.json as people have it: what it means, and what is refused in one line."""

import json
import re

import pytest
from tiny_models import FAMILIES

from atod_jax.models import config_from_hf
from atod_jax.models.checkpoint_io import read_config
from atod_jax.models.families import config_to_hf
from atod_jax.models.rope import Linear, Llama3, Yarn

DROP = object()
LLAMA32 = {
    "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192, "rope_type": "llama3",
}  # fmt: skip


def read(family: str, **changes):
    fields = config_to_hf(FAMILIES[family], dtype="float32")
    for name in ("rope_parameters", "rope_theta"):
        fields.pop(name)
    fields |= {"rope_theta": 1e4} | changes
    return config_from_hf({k: v for k, v in fields.items() if v is not DROP})


@pytest.mark.parametrize(
    ("family", "changes", "meant"),
    [
        ("llama", {"head_dim": DROP}, {"head_dim": 4}),
        ("llama", {"head_dim": None}, {"head_dim": 4}),
        ("qwen2", {"head_dim": DROP}, {"head_dim": 4}),
        ("qwen3", {"head_dim": DROP}, {"head_dim": 128}),
        ("qwen3_moe", {"head_dim": DROP}, {"head_dim": 4}),
        ("llama", {"num_key_value_heads": DROP}, {"num_kv_heads": 4}),
        ("qwen2", {"num_key_value_heads": None}, {"num_kv_heads": 4}),
        ("llama", {"rms_norm_eps": DROP}, {"rms_eps": 1e-6}),
        ("qwen3", {"tie_word_embeddings": DROP}, {"tie_embeddings": False}),
        ("qwen3_moe", {"norm_topk_prob": DROP}, {"normalize_top_k": False}),
        ("qwen3_moe", {"num_experts": DROP, "num_local_experts": 4}, {"num_experts": 4}),
        ("llama", {"attention_dropout": None, "sliding_window": None}, {}),
        ("qwen2", {"sliding_window": 4096, "quantization_config": None}, {}),
        ("llama", {"rope_theta": DROP}, {"rope_theta": 1e4}),
        ("llama", {"rope_theta": 5000000}, {"rope_theta": 5e6}),
        ("qwen2", {"rope_parameters": {"rope_theta": 7.0}}, {"rope_theta": 7.0}),
    ],
)
def test_what_is_missing_or_null_means_what_transformers_means(family, changes, meant):
    config = read(family, **changes)
    assert {name: getattr(config, name) for name in meant} == meant


@pytest.mark.parametrize(
    ("changes", "theta", "scaling"),
    [
        ({"rope_scaling": LLAMA32}, 1e4, Llama3(32.0, 1.0, 4.0, 8192)),
        ({"rope_parameters": LLAMA32 | {"rope_theta": 5e5}}, 5e5, Llama3(32.0, 1.0, 4.0, 8192)),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, 1e4, Linear(2)),
        # the older place wins, unless it is empty
        ({"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": LLAMA32}, 1e4,
         Linear(2)),
        ({"rope_scaling": {}, "rope_parameters": LLAMA32}, 1e4, Llama3(32.0, 1.0, 4.0, 8192)),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "attention_factor": 1.5},
          "max_position_embeddings": 99}, 1e4, Yarn(4.0, 1.5, 99, 32.0, 1.0, True)),
        ({"rope_scaling": {"rope_type": "yarn", "factor": None, "truncate": None, "beta_fast": 8,
                           "original_max_position_embeddings": 16, "mscale": 1.0,
                           "mscale_all_dim": 1.0}, "max_position_embeddings": 64}, 1e4,
         Yarn(4.0, 1.0, 16, 8, 1.0, False)),
    ],
)  # fmt: skip
def test_rope_scaling_wherever_it_is_stated(changes, theta, scaling):
    config = read("llama", **changes)
    assert (config.rope_theta, config.rope_scaling) == (theta, scaling)
    assert config_from_hf(config_to_hf(config, dtype="float32")) == config


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("qwen3", {"model_type": "mistral"}, "model_type='mistral' is not supported, only llama"),
        ("qwen3", {"model_type": ["llama"]}, r"model_type=\['llama'\] is not supported"),
        ("qwen3", {"attention_bias": True}, "attention_bias=True"),
        ("llama", {"attention_bias": True}, "attention_bias=True is not supported, only False"),
        ("llama", {"mlp_bias": True}, "mlp_bias=True is not supported, only False"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("llama", {"is_causal": False}, "is_causal=False is not supported, only True"),
        ("llama", {"sliding_window": 64}, "sliding_window=64"),
        ("llama", {"attention_dropout": 0.1}, "attention_dropout=0.1"),
        ("llama", {"per_layer_config": {"0": {"head_dim": 4}}}, "per_layer_config="),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config="),
        ("llama", {"torch_dtype": "int8"}, "torch_dtype='int8'"),
        ("llama", {"pad_token_id": 48}, "pad_token_id=48 is not one of the vocab_size=48 ids"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window=True"),
        ("qwen3", {"layer_types": ["full_attention"] * 2 + ["sliding_attention"]}, "layer_types="),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step=2 is not supported, only 1"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, r"mlp_only_layers=\[0\] is not supported"),
        ("qwen3_moe", {"num_experts_per_tok": 5}, "num_experts_per_tok=5: choose 1 to num_exp"),
        ("qwen3", {"num_key_value_heads": 3}, "num_attention_heads=4 is no multiple of num_key"),
        ("qwen3", {"hidden_size": "16"}, "'hidden_size' expected int, got str .value: '16'"),
        ("llama", {"rms_norm_eps": True}, "'rms_norm_eps' expected float, got bool"),
        ("llama", {"rms_norm_eps": -1e-6}, "rms_norm_eps=-1e-06 is not supported: write a"),
        ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps=nan is not supported"),
        ("qwen2", {"vocab_size": -48}, "vocab_size=-48 is not supported"),
        ("qwen2", {"head_dim": None}, "head_dim=None is not supported: write a whole number"),
        ("qwen2", {"num_attention_heads": 0}, "num_attention_heads=0 is not supported"),
        ("llama", {"num_attention_heads": 5}, "transformers refuses it .*not a multiple of the"),
        ("llama", {"num_labels": 10**9}, "num_labels=1000000000 .*at most 1e.06"),
        ("qwen3", {"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000 .*at most 1024"),
        ("llama", {"rope_theta": None}, "rope_theta=None of the rope parameters: write a number"),
        ("llama", {"rope_theta": "1e4"}, "rope_theta='1e4'"),
        ("llama", {"rope_scaling": "yarn"}, "'rope_parameters' with value 'yarn'"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "Missing required keys .*'factor'"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 0}}, "factor=0 of the rope"),
        ("llama", {"rope_scaling": LLAMA32 | {"factor": "32"}}, "factor='32' of the rope"),
        ("llama", {"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": "no"}}, "truncate="),
        ("llama", {"rope_scaling": {"type": "yarn", "factor": 2.0}, "rope_theta": 1.0},
         "rope_theta=1.0 with Yarn.* turns no position"),
        ("llama", {"attn_implementation": "mine"}, "attn_implementation='mine' is not supported"),
        ("llama", {"auto_map": "a.B"}, "auto_map='a.B' is not supported: take it out"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ("qwen3", {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
         "rope type None is not supported"),
    ],
)  # fmt: skip
def test_what_is_refused(family, changes, message):
    with pytest.raises(ValueError, match=rf"^config\.json: .*{message}") as refusal:
        read(family, **changes)
    assert "\n" not in str(refusal.value)


def test_the_file_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}/config.json: model_type='gpt2'")):
        read_config(tmp_path)
