"""Annealing coefficients."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from atod_jax.core.schedules import AnnealConfig, mix


def test_hand_numbers():
    """Update 1 of 80: kappa 1 - 0.9 / 80, rho 1 + 1 / 80; from update 80 on the end values."""
    np.testing.assert_allclose(mix(jnp.array(1), cfg=AnnealConfig()), (0.98875, 1.0125), rtol=1e-6)
    for update in (80, 81, 1000):
        got = mix(jnp.array(update), cfg=AnnealConfig())
        np.testing.assert_allclose(got, (0.1, 2.0), rtol=1e-6)


@pytest.mark.parametrize("steps", [80, 7, 0, -1])
def test_agrees_with_the_equation_on_device_and_host(steps):
    cfg = AnnealConfig(steps=steps)
    for update in (1, 2, 6, 7, 8, 79, 80, 200):
        expected = oracles.mix(update, steps=steps)
        jitted = jax.jit(mix, static_argnames="cfg")(jnp.array(update), cfg=cfg)
        np.testing.assert_allclose(jitted, expected, rtol=1e-6)
        np.testing.assert_allclose(mix(update, cfg=cfg, xp=np), expected, rtol=1e-12)


def test_the_constant_ablation_stays_at_the_start():
    cfg = AnnealConfig(kind="constant", rho_start=0.5)
    for update in (1, 80, 500):
        np.testing.assert_array_equal(mix(jnp.array(update), cfg=cfg), (1.0, 0.5))


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="cosine"):
        AnnealConfig(kind="cosine")
