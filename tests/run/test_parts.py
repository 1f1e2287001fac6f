"""Sampling some prompts at a time: the same actions as all at once."""

import jax
import numpy as np
import pytest

from atod_jax import config
from atod_jax.device.policy import Policy
from atod_jax.device.sampling import SamplingConfig
from atod_jax.models import ModelConfig, build
from atod_jax.run.parts import actor

MODEL = build(
    ModelConfig(
        vocab_size=32,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        intermediate_size=24,
        rope_theta=1e4,
        rms_eps=1e-6,
        tie_embeddings=True,
    )
)


def act(rows_at_a_time: int, prompts: list[np.ndarray], rows: list[int]):
    cfg = SamplingConfig(
        max_new_tokens=5, prompt_buckets=(6,), max_rows=rows_at_a_time, eos_ids=(1,), pad_id=0
    )
    params = MODEL.init(jax.random.key(0))
    one = actor(Policy(MODEL, cfg), params, jax.random.key(1), slots=20)
    return one(prompts, rows, 3)


@pytest.mark.parametrize("played", [20, 7, 0])
def test_pieces_draw_what_all_at_once_would(played):
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, 32, rng.integers(1, 7)) for _ in range(played)]
    rows = [3 * i for i in range(played)]
    whole, pieces = act(20, prompts, rows), act(8, prompts, rows)
    assert len(pieces) == played
    for a, b in zip(whole, pieces, strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_allclose(a.logp, b.logp, atol=1e-5)


def test_a_negative_number_of_rows_is_refused():
    c = config.base()
    c.sampling.rows = -1
    with pytest.raises(ValueError, match=r"sampling\.rows=-1: must be at least 0"):
        config.resolve(c, model_required=False)
