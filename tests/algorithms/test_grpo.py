"""GRPO: the row advantage on every action token."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from atod_jax.algorithms import grpo
from atod_jax.algorithms.base import Step
from atod_jax.core.advantages import RewardConfig

compiled = jax.jit(grpo.signal, static_argnums=0)


def signal(cfg, *step):
    return compiled(cfg, Step(*step))


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_loops(seed):
    batch, student, _ = oracles.ragged_batch(seed)
    got = signal(grpo.Config(), batch, student, None, jnp.array(0))
    rows = batch.rows
    traj = np.asarray(rows.traj)
    scores = oracles.row_scores(batch.returns, traj, rows.action_valid, penalty=0.1)
    per_row = oracles.group_relative(scores, traj, np.asarray(batch.group))
    expected = np.where(rows.action_mask, per_row[:, None], 0.0)
    np.testing.assert_allclose(got.advantage, expected, rtol=1e-5, atol=1e-5)
    assert got.ce_weight is None


def test_a_group_of_one_is_finite():
    batch, student, _ = oracles.ragged_batch(0, group_size=1)
    got = signal(grpo.Config(), batch, student, None, jnp.array(0))
    assert np.isfinite(got.advantage).all()


def test_the_step_does_not_matter_and_no_teacher_is_needed():
    batch, student, _ = oracles.ragged_batch(0)
    first, late = (signal(grpo.Config(), batch, student, None, jnp.array(s)) for s in (0, 99))
    np.testing.assert_array_equal(first.advantage, late.advantage)
    assert not grpo.ALGORITHM.needs_teacher(grpo.Config(), 0)


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("seed", range(2))
def test_gigpo_agrees_with_loops(seed, scale):
    batch, student, _ = oracles.ragged_batch(seed)
    cfg = grpo.Config(
        RewardConfig(estimator="gigpo", gigpo_gamma=0.9, gigpo_weight=0.5, scale=scale)
    )
    got = signal(cfg, batch, student, None, jnp.array(0))
    per_row = oracles.gigpo(batch, gamma=0.9, weight=0.5, penalty=0.1, scale=scale)
    expected = np.where(batch.rows.action_mask, per_row[:, None], 0.0)
    np.testing.assert_allclose(got.advantage, expected, rtol=1e-4, atol=1e-4)


def test_an_unknown_estimator_is_named():
    with pytest.raises(ValueError, match="estimator='ppo': choose from grpo, gigpo"):
        RewardConfig(estimator="ppo")
