"""The least that a step has to do, in numbers worked out by hand."""

import dataclasses

import pytest

from atod_jax.estimate import work
from atod_jax.models import ModelConfig

DENSE = ModelConfig(
    vocab_size=100, hidden_size=10, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
    intermediate_size=20, rope_theta=1e4, rms_eps=1e-6, tie_embeddings=True,
)  # fmt: skip
MIXTURE = dataclasses.replace(DENSE, num_experts=4, experts_per_token=1, dtype="bfloat16")


def test_a_dense_step_reads_all_weights_and_what_was_seen_once():
    """2 layers of 10 (2 x 6 x 8 + 3 x 20) weights, a table of 1,000, 64 numbers seen a column."""
    found = work.step(DENSE, 3, 5)
    assert found.bytes == 4 * (2 * 10 * 156 + 1000 + 3 * 5 * 64)
    assert found.flops == 3 * (2 * (2 * 10 * 156 + 1000) + 5 * 4 * 2 * 4 * 8)


@pytest.mark.parametrize(("rows", "experts"), [(1, 1), (2, 1.75), (1000, 4)])
def test_a_mixture_reads_the_experts_that_any_row_has_chosen(rows, experts):
    """Of 4, two rows that choose one each reach 1 + 3/4; each row multiplies with its own alone."""
    found = work.step(MIXTURE, rows, 0)
    assert found.bytes == pytest.approx(2 * (2 * 10 * (96 + experts * 60) + 1000))
    assert found.flops == rows * 2 * (2 * 10 * 156 + 1000)
