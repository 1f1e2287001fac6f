"""Turn signals and weights against loops, the paper's example and invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atod_jax.core.tdur import TdurConfig, turn_signals, turn_weights

OPTIONS = [
    {},
    {"score": "divergence_only"},
    {"score": "entropy_only"},
    {"min_turns": 1, "min_divergence": 0.0},
    {"min_turns": 6, "min_divergence": 0.5},
    {"top_rho": 0.4},
    {"top_rho": 0.7, "smoothing": 0.2, "mean_preserving": True},
    {"smoothing": 0.1},
    {"mean_preserving": True},
]


def weights_of(batch, student, teacher, cfg):
    rows = batch.rows
    d, h = turn_signals(student.logp, teacher.logp, action_mask=rows.action_mask)
    length = jnp.sum(rows.action_mask, axis=1)
    return turn_weights(d, h, traj=rows.traj, length=length, num_traj=len(batch.returns), cfg=cfg)


compiled = jax.jit(weights_of, static_argnums=3)


def one_trajectory(d, h, cfg, length=None):
    n = len(d)
    length = jnp.ones(n, int) if length is None else jnp.asarray(length)
    d, h = jnp.asarray(d, jnp.float32), jnp.asarray(h, jnp.float32)
    return turn_weights(d, h, traj=jnp.zeros(n, int), length=length, num_traj=1, cfg=cfg)


def test_the_papers_example():
    """Appendix of arXiv 2606.27814, household task.

    Inputs are printed to three decimals: +-0.0005 on h moves the third weight by up to 0.03.
    """
    d, h = (0.101, 0.228, 0.022, 0.019, 0.138), (0.037, 0.025, 0.010, 0.006, 0.008)
    got = one_trajectory(d, h, TdurConfig())
    np.testing.assert_allclose(got, (1.00, 1.00, 0.15, 0.00, 0.60), atol=0.01)


def test_signals_hand_numbers():
    """Two tokens with gaps 1 and 3, -lpS 2 and 4; the third column and the second row are off."""
    student = jnp.array([[-2.0, -4.0, -9.0], [-1.0, -1.0, -1.0]])
    teacher = jnp.array([[-1.0, -7.0, 99.0], [5.0, 5.0, 5.0]])
    mask = jnp.array([[True, True, False], [False, False, False]])
    d, h = turn_signals(student, teacher, action_mask=mask)
    np.testing.assert_array_equal(d, [2.0, 0.0])
    np.testing.assert_array_equal(h, [3.0, 0.0])


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("seed", range(2))
def test_agrees_with_loops(seed, options, jit):
    batch, student, teacher = oracles.ragged_batch(seed)
    rows = batch.rows
    mask = np.asarray(rows.action_mask)
    d, h = oracles.turn_signals(np.asarray(student.logp), np.asarray(teacher.logp), mask)
    expected = oracles.turn_weights(d, h, np.asarray(rows.traj), mask.sum(1), num_traj=8, **options)
    fn = compiled if jit else weights_of
    got = fn(batch, student, teacher, TdurConfig(**options))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=5e-6)


def test_guards_keep_weight_one():
    np.testing.assert_array_equal(one_trajectory([0.1, 0.9], [1.0, 2.0], TdurConfig()), [1, 1])
    quiet = one_trajectory([0.001, 0.002, 0.009], [1.0, 2.0, 3.0], TdurConfig())
    np.testing.assert_array_equal(quiet, [1, 1, 1])


def test_without_guards_a_single_turn_gets_three_quarters():
    cfg = TdurConfig(min_turns=1, min_divergence=0.0)
    np.testing.assert_array_equal(one_trajectory([0.5], [0.5], cfg), [0.75])


def test_turns_that_tie_at_the_threshold_are_all_kept():
    cfg = TdurConfig(score="divergence_only", top_rho=0.25)
    got = one_trajectory([0.0, 1.0, 1.0, 0.5], [0.0] * 4, cfg)
    np.testing.assert_array_equal(got, [0, 1, 1, 0])


def test_the_kept_share_is_rounded_up_in_double_precision():
    """ceil(K * 0.3): 10 * 0.3 is exactly 3 in doubles, a little more from a float32 0.3."""
    turns, kept = [3, 10, 11, 30], [1, 3, 4, 9]
    traj = jnp.asarray(np.repeat(np.arange(4), turns))
    d = jnp.asarray(np.random.default_rng(0).permutation(sum(turns)) / 10 + 0.1, jnp.float32)
    cfg = TdurConfig(score="divergence_only", top_rho=0.3)
    weights = turn_weights(d, d, traj=traj, length=jnp.ones_like(traj), num_traj=4, cfg=cfg)
    np.testing.assert_array_equal(np.bincount(traj, weights=weights > 0), kept)


def test_mean_preserving_weights_have_token_mean_one():
    length = [1, 5, 2, 9, 0]
    cfg = TdurConfig(mean_preserving=True)
    got = one_trajectory([0.1, 0.7, 0.3, 0.9, 0.0], [0.5, 0.1, 0.2, 0.3, 0.0], cfg, length)
    np.testing.assert_allclose(np.average(got, weights=length), 1.0, rtol=1e-6)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), option=st.sampled_from(OPTIONS))
def test_row_order_does_not_matter(seed, option):
    batch, student, teacher = oracles.ragged_batch(seed)
    cfg = TdurConfig(**option)
    order = np.random.default_rng(seed).permutation(len(batch.rows.traj))
    expected = np.asarray(compiled(batch, student, teacher, cfg))[order]
    rows, student, teacher = oracles.permuted((batch.rows, student, teacher), order)
    got = compiled(batch.replace(rows=rows), student, teacher, cfg)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), option=st.sampled_from(OPTIONS))
def test_other_trajectories_and_padding_do_not_matter(seed, option):
    """All rows but those of trajectory 2 become padding."""
    batch, student, teacher = oracles.ragged_batch(seed)
    cfg, num = TdurConfig(**option), len(batch.returns)
    own = np.asarray(batch.rows.traj) == 2
    emptied = batch.rows.replace(
        traj=jnp.where(own, batch.rows.traj, num),
        action_mask=jnp.where(own[:, None], batch.rows.action_mask, False),
    )
    alone = compiled(batch.replace(rows=emptied), student, teacher, cfg)
    together = np.asarray(compiled(batch, student, teacher, cfg))
    np.testing.assert_allclose(together[own], np.asarray(alone)[own], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(together[np.asarray(batch.rows.traj) == num], 1.0)


@pytest.mark.parametrize(
    "options", [{"score": "max"}, {"top_rho": 0.0}, {"top_rho": 1.5}, {"smoothing": -0.1}], ids=str
)
def test_bad_options_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        TdurConfig(**options)
