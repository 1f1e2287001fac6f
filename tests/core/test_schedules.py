"""Annealing coefficients."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from atod_jax.core.schedules import AnnealConfig, mix, needs_teacher


def test_hand_numbers():
    """Update 1 of 80: kappa 1 - 0.9 / 80, rho 1 + 1 / 80; from update 80 on the end values."""
    np.testing.assert_allclose(mix(jnp.array(1), cfg=AnnealConfig()), (0.98875, 1.0125), rtol=1e-6)
    for update in (80, 81, 1000):
        got = mix(jnp.array(update), cfg=AnnealConfig())
        np.testing.assert_allclose(got, (0.1, 2.0), rtol=1e-6)


@pytest.mark.parametrize("steps", [80, 7, 0, -1])
def test_agrees_with_the_equation_in_single_and_double_precision(steps):
    cfg = AnnealConfig(steps=steps)
    for update in (1, 2, 6, 7, 8, 79, 80, 200):
        expected = oracles.mix(update, steps=steps)
        jitted = jax.jit(mix, static_argnames="cfg")(jnp.array(update), cfg=cfg)
        np.testing.assert_allclose(jitted, expected, rtol=1e-6)
        with jax.enable_x64(True):
            np.testing.assert_allclose(mix(jnp.array(update), cfg=cfg), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("steps", [6, 0])
@pytest.mark.parametrize(("start", "end"), [(1.0, 0.0), (0.0, 0.3), (0.0, 0.0), (1.0, 0.1)])
def test_the_host_knows_where_kappa_is_zero(kind, steps, start, end):
    cfg = AnnealConfig(kind=kind, steps=steps, kappa_start=start, kappa_end=end)
    for update in range(1, 9):
        assert needs_teacher(update, cfg=cfg) == bool(mix(update, cfg=cfg)[0] != 0), update


def test_the_constant_ablation_stays_at_the_start():
    cfg = AnnealConfig(kind="constant", rho_start=0.5)
    for update in (1, 80, 500):
        np.testing.assert_array_equal(mix(jnp.array(update), cfg=cfg), (1.0, 0.5))


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="cosin"):
        AnnealConfig(kind="cosin")


def test_cosine_has_the_ends_and_the_middle_of_linear_but_no_corners():
    cosine, linear = AnnealConfig(kind="cosine"), AnnealConfig()
    for update in (0, 40, 80, 200):
        np.testing.assert_allclose(mix(update, cfg=cosine), mix(update, cfg=linear), atol=1e-6)
    early, late = (float(mix(u, cfg=cosine)[0]) for u in (4, 76))
    assert early > float(mix(4, cfg=linear)[0])
    assert late < float(mix(76, cfg=linear)[0])


@pytest.mark.parametrize(("gap", "kappa", "rho"), [(2.0, 1.0, 1.0), (0.5, 1.0, 1.0),
                                                   (0.25, 0.55, 1.5), (0.0, 0.1, 2.0)])  # fmt: skip
def test_adaptive_fades_with_the_gap(gap, kappa, rho):
    cfg = AnnealConfig(kind="adaptive", gap=0.5)
    np.testing.assert_allclose(mix(7, cfg=cfg, gap=jnp.array(gap)), (kappa, rho), rtol=1e-6)


def test_an_adaptive_schedule_needs_a_gap_and_a_teacher_to_the_end():
    cfg = AnnealConfig(kind="adaptive", kappa_end=0.0)
    with pytest.raises(ValueError, match="gap to a teacher"):
        mix(1, cfg=cfg)
    assert needs_teacher(10_000, cfg=cfg)
    assert not needs_teacher(1, cfg=AnnealConfig(kind="adaptive", kappa_start=0.0, kappa_end=0.0))
    with pytest.raises(ValueError, match=r"gap=0\.0"):
        AnnealConfig(kind="adaptive", gap=0.0)
