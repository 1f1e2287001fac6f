"""Group-relative advantages against loops, hand numbers and invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atod_jax.core import advantages
from atod_jax.core.advantages import RewardConfig, group_relative, row_advantages, row_scores

TURNS = RewardConfig()
TRAJECTORIES = RewardConfig(statistics="trajectories", invalid_penalty=0.0)
compiled = jax.jit(row_advantages, static_argnames="cfg")


def test_hand_numbers():
    """Rows score 10 10 0 -0.1 (two trajectories, the second with one invalid action).

    Over rows: mean 4.975, squares 2 * 5.025^2 + 4.975^2 + 5.075^2 = 101.0075, std 5.80251.
    Over trajectories: scores 10 and 0 (its first row): mean 5, std 7.0711.
    """
    scores = jnp.array([10.0, 10.0, 0.0, -0.1])
    traj, group = jnp.array([0, 0, 1, 1]), jnp.array([0, 0])
    got = group_relative(scores, traj, group=group, cfg=TURNS)
    np.testing.assert_allclose(got, [0.86600, 0.86600, -0.85739, -0.87462], atol=1e-5)
    got = group_relative(scores, traj, group=group, cfg=TRAJECTORIES)
    np.testing.assert_allclose(got, [0.70711, 0.70711, -0.70711, -0.72125], atol=1e-5)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("statistics", advantages.STATISTICS)
@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_loops(seed, statistics, scale, jit):
    batch, _, _ = oracles.ragged_batch(seed, trajectories=9, group_size=3)
    penalty = 0.1 if statistics == "turns" else 0.0
    cfg = RewardConfig(statistics=statistics, scale=scale, invalid_penalty=penalty)
    rows = batch.rows
    scores = oracles.row_scores(batch.returns, rows.traj, rows.action_valid, penalty=penalty)
    traj, group = np.asarray(rows.traj), np.asarray(batch.group)
    expected = oracles.group_relative(scores, traj, group, statistics=statistics, scale=scale)
    fn = compiled if jit else row_advantages
    np.testing.assert_allclose(fn(batch, cfg=cfg), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("score", [9.9, 0.99, -0.1, 10.0, 1.0, 0.1 + 0.2])
@pytest.mark.parametrize("cfg", [TURNS, TRAJECTORIES], ids=["turns", "trajectories"])
def test_equal_scores_give_exactly_zero(score, cfg):
    """The plain float32 mean of 127 times 9.9 is off by an ulp; over eps that would be 0.5."""
    traj = jnp.arange(127) // 5
    got = group_relative(jnp.full(127, score), traj, group=jnp.zeros(26, int), cfg=cfg)
    assert not np.any(got)


@pytest.mark.parametrize("cfg", [TURNS, TRAJECTORIES], ids=["turns", "trajectories"])
def test_a_group_with_one_sample_keeps_its_score(cfg):
    got = group_relative(jnp.array([10.0]), jnp.array([0]), group=jnp.array([0]), cfg=cfg)
    np.testing.assert_allclose(got, [10.0 / (1 + 1e-6)], rtol=1e-7)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_row_order_does_not_matter(seed):
    batch, _, _ = oracles.ragged_batch(seed)
    order = np.random.default_rng(seed).permutation(len(batch.rows.traj))
    shuffled = batch.replace(rows=oracles.permuted(batch.rows, order))
    for cfg in (TURNS, TRAJECTORIES):
        expected = np.asarray(compiled(batch, cfg=cfg))[order]
        np.testing.assert_allclose(compiled(shuffled, cfg=cfg), expected, atol=1e-5)


@pytest.mark.parametrize("cfg", [TURNS, TRAJECTORIES], ids=["turns", "trajectories"])
def test_padding_rows_do_not_matter(cfg):
    batch, _, _ = oracles.ragged_batch(5)
    real = np.flatnonzero(np.asarray(batch.rows.traj) < len(batch.returns))
    unpadded = batch.replace(rows=oracles.permuted(batch.rows, real))
    got = np.asarray(row_advantages(batch, cfg=cfg))
    np.testing.assert_allclose(got[real], row_advantages(unpadded, cfg=cfg), atol=1e-5)
    assert not np.any(np.delete(got, real))


def test_advantages_sum_to_zero_over_the_rows_of_a_group():
    batch, _, _ = oracles.ragged_batch(3)
    got = row_advantages(batch, cfg=TURNS)
    traj = np.asarray(batch.rows.traj)
    for g in (0, 1):
        members = [t < len(batch.group) and batch.group[t] == g for t in traj]
        np.testing.assert_allclose(np.asarray(got)[members].sum(), 0.0, atol=1e-4)


def test_the_penalty_is_per_row_and_spares_padding():
    got = row_scores(
        jnp.array([10.0, 0.0]),
        jnp.array([0, 0, 1, 2]),
        action_valid=jnp.array([True, False, False, False]),
        invalid_penalty=0.5,
    )
    np.testing.assert_array_equal(got, [10.0, 9.5, -0.5, 0.0])


def test_first_rows_follow_the_order_and_then_the_position():
    ids, order = jnp.array([0, 1, 0, 1, 2]), jnp.array([1, 0, 0, 0, 0])
    got = advantages.first_rows(ids, order, num=2)
    np.testing.assert_array_equal(got, [False, True, True, False, False])


@pytest.mark.parametrize("seed", range(3))
def test_step_returns_agree_with_loops(seed):
    rows = oracles.ragged_batch(seed)[0].rows
    rewards = np.random.default_rng(seed).normal(size=len(rows.traj)).astype(np.float32)
    got = advantages.step_returns(jnp.asarray(rewards), rows.traj, turn=rows.turn, gamma=0.9)
    traj, turn = np.asarray(rows.traj), np.asarray(rows.turn)
    expected = oracles.step_returns(rewards, traj, turn, gamma=0.9)
    np.testing.assert_allclose(np.asarray(got)[traj < 8], expected[traj < 8], rtol=1e-5, atol=1e-5)


def test_gigpo_hand_numbers():
    """One group, observations a a b: S is +-1 about the mean 4 for the pair, 0 for the single."""
    got = advantages.gigpo(
        jnp.array([6.0, 0.0, 0.0]),
        jnp.array([5.0, 3.0, 7.0]),
        traj=jnp.array([0, 1, 1]),
        group=jnp.array([0, 0]),
        anchor=jnp.array([4, 4, 9]),
        cfg=RewardConfig(scale=False, gigpo_weight=0.5),
    )
    np.testing.assert_allclose(got, [4.5, -2.5, -2.0])


def test_unknown_statistics_are_named():
    with pytest.raises(ValueError, match="statistics='rows'"):
        RewardConfig(statistics="rows")
