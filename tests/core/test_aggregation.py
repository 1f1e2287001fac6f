"""Shares of tokens in the loss: each mode against loops, and what may not change them."""

import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atod_jax.core.aggregation import MODES, token_shares


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_agrees_with_loops(mode, seed):
    batch, _, _ = oracles.ragged_batch(seed)
    rows = batch.rows
    got = token_shares(rows.action_mask, rows.traj, num_traj=8, mode=mode)
    expected = oracles.token_shares(
        np.asarray(rows.action_mask), np.asarray(rows.traj), num_traj=8, mode=mode
    )
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_padding_rows_and_order_change_nothing(mode):
    batch, _, _ = oracles.ragged_batch(3)
    mask, traj = batch.rows.action_mask, batch.rows.traj
    want = np.asarray(token_shares(mask, traj, num_traj=8, mode=mode))
    junk = jnp.ones((4, mask.shape[1]), bool)  # a padding row counts for nothing, whatever it holds
    padded = token_shares(
        jnp.concatenate([mask, junk]), jnp.append(traj, jnp.full(4, 8)), num_traj=8, mode=mode
    )
    np.testing.assert_array_equal(padded[: len(mask)], want)
    assert not np.any(padded[len(mask) :])
    order = np.random.default_rng(0).permutation(len(mask))
    moved = token_shares(mask[order], traj[order], num_traj=8, mode=mode)
    np.testing.assert_allclose(moved, want[order], rtol=1e-6)


@pytest.mark.parametrize("mode", ["token-mean", "trajectory-mean-token-mean"])
def test_means_sum_to_one(mode):
    batch, _, _ = oracles.ragged_batch(1)
    shares = token_shares(batch.rows.action_mask, batch.rows.traj, num_traj=8, mode=mode)
    np.testing.assert_allclose(jnp.sum(shares), 1.0, rtol=1e-5)


def test_long_trajectories_weigh_more_per_token_mean_only():
    """Two trajectories of one and three tokens."""
    mask, traj = jnp.ones((4, 1), bool), jnp.array([0, 1, 1, 1])
    flat = token_shares(mask, traj, num_traj=2, mode="token-mean")
    fair = token_shares(mask, traj, num_traj=2, mode="trajectory-mean-token-mean")
    np.testing.assert_allclose(flat[:, 0], [0.25] * 4)
    np.testing.assert_allclose(fair[:, 0], [0.5, 1 / 6, 1 / 6, 1 / 6], rtol=1e-6)


def test_an_unknown_mode_is_named():
    with pytest.raises(ValueError, match="aggregation='mean'"):
        token_shares(jnp.ones((1, 1), bool), jnp.zeros(1, jnp.int32), num_traj=1, mode="mean")
