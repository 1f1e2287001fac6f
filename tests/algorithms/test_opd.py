"""Plain on-policy distillation."""

import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from atod_jax.algorithms import opd
from atod_jax.algorithms.base import Step


def test_the_advantage_is_the_log_probability_gap():
    batch, student, teacher = oracles.ragged_batch(0)
    got = opd.signal(opd.Config(coef=2.0), Step(batch, student, teacher, jnp.array(0)))
    gap = np.asarray(teacher.logp, np.float64) - np.asarray(student.logp, np.float64)
    expected = np.where(batch.rows.action_mask, 2.0 * gap, 0.0)
    np.testing.assert_allclose(got.advantage, expected, rtol=1e-6, atol=1e-6)
    kl, tokens = got.diagnostics["kl/token"].value(), int(batch.rows.action_mask.sum())
    np.testing.assert_allclose(kl, -expected.sum() / 2 / tokens, rtol=1e-5)


def test_rewards_do_not_matter():
    batch, student, teacher = oracles.ragged_batch(0)
    other = batch.replace(returns=batch.returns + jnp.arange(8.0))
    a, b = (
        opd.signal(opd.Config(), Step(x, student, teacher, jnp.array(0))) for x in (batch, other)
    )
    np.testing.assert_array_equal(a.advantage, b.advantage)


def test_a_missing_teacher_is_an_error():
    batch, student, _ = oracles.ragged_batch(0)
    assert opd.ALGORITHM.needs_teacher(opd.Config(), 10_000)
    with pytest.raises(ValueError, match="teacher=None"):
        opd.signal(opd.Config(), Step(batch, student, None, jnp.array(0)))


def test_exact_moves_the_term_from_the_advantage_into_the_loss():
    batch, student, teacher = oracles.ragged_batch(0)
    cfg = opd.Config(coef=2.0, exact=True)
    got = opd.signal(cfg, Step(batch, student, teacher, jnp.array(0)))
    assert not np.any(got.advantage)
    np.testing.assert_array_equal(got.kl_weight, np.where(batch.rows.action_mask, 2.0, 0.0))
    assert opd.ALGORITHM.teacher(cfg).exact_kl
    assert not opd.ALGORITHM.teacher(opd.Config()).exact_kl
