"""The rates of scaled rotary positions: transformers' numbers, stored and live."""

import copy

import numpy as np
import pytest

from atod_jax.models import config_from_hf
from atod_jax.models.rope import Linear, Llama3, Yarn, rates_of, sharpness

LLAMA31 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3"}
QWEN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
DEEPSEEK = {"type": "yarn", "factor": 40, "mscale": 1.0, "mscale_all_dim": 0.8, "beta_fast": 16}
SIZES = {"hidden_size": 512, "num_attention_heads": 8, "num_hidden_layers": 1, "head_dim": 64}
CASES = {
    "default": {"rope_theta": 5e5},
    "older and newer": {"rope_scaling": LLAMA31, "rope_parameters": QWEN, "rope_theta": 5e5},
    "llama 3.1": {"rope_scaling": LLAMA31 | {"original_max_position_embeddings": 8192}},
    "llama 3, its own context": {"rope_parameters": LLAMA31, "max_position_embeddings": 2048},
    "llama 3, context outside": {"rope_scaling": LLAMA31, "original_max_position_embeddings": 512},
    "llama 3, no ramp": {"rope_scaling": LLAMA31 | {"high_freq_factor": 1.0}},
    "llama 3, crossed": {"rope_scaling": LLAMA31 | {"high_freq_factor": 0.5, "factor": 2}},
    "linear": {"rope_scaling": {"type": "linear", "factor": 3}, "rope_theta": 12345.0},
    "yarn": {"rope_scaling": QWEN, "rope_theta": 1000000},
    "yarn by lengths": {"rope_scaling": QWEN | {"factor": None}, "max_position_embeddings": 99999},
    "yarn, shrinking": {"rope_scaling": QWEN | {"factor": 0.5}},
    "yarn, given sharpness": {"rope_scaling": QWEN | {"attention_factor": 2}},
    "yarn, not truncated": {"rope_scaling": QWEN | {"truncate": False, "beta_slow": 2.5}},
    "yarn, a short context": {"rope_scaling": QWEN | {"original_max_position_embeddings": 7}},
    "yarn of deepseek": {"rope_parameters": DEEPSEEK, "max_position_embeddings": 4096},
}


@pytest.mark.parametrize(
    ("theta", "scaling", "known"),
    [
        (1e4, Linear(4.0),
         [0.25, 0.079056941, 0.025, 0.0079056947, 0.0025, 0.00079056947, 0.00025, 7.9056947e-05]),
        (5e5, Llama3(8.0, 1.0, 4.0, 8192),
         [1.0, 0.19392276, 0.037606031, 0.0072926651, 0.00052484602, 3.4281024e-05, 6.6478697e-06,
          1.2891732e-06]),
        (1e6, Yarn(4.0, 1.1386294, 32768, 32.0, 1.0, True),
         [1.0, 0.17782794, 0.031622779, 0.0042175599, 0.0005, 4.4456985e-05, 7.9056936e-06,
          1.4058534e-06]),
    ],
)  # fmt: skip
def test_rates_are_the_stored_ones_of_transformers(theta, scaling, known):
    np.testing.assert_allclose(rates_of(theta, 16, scaling), known, rtol=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "qwen3_moe"])
@pytest.mark.parametrize("case", CASES)
def test_rates_are_those_of_transformers(family, case):
    import transformers
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeRotaryEmbedding

    rotary = {
        "llama": LlamaRotaryEmbedding, "qwen2": Qwen2RotaryEmbedding,
        "qwen3": Qwen3RotaryEmbedding, "qwen3_moe": Qwen3MoeRotaryEmbedding,
    }[family]  # fmt: skip
    fields = copy.deepcopy({"num_key_value_heads": 8} | SIZES | CASES[case])
    config = config_from_hf({"model_type": family} | fields)
    theirs = rotary(transformers.AutoConfig.for_model(family, **fields))
    ours = rates_of(config.rope_theta, config.head_dim, config.rope_scaling)
    np.testing.assert_allclose(ours, theirs.inv_freq.numpy(), rtol=1e-6)
    assert sharpness(config.rope_scaling) == pytest.approx(theirs.attention_scaling, rel=1e-7)
