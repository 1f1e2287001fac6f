"""Supervised fine-tuning: the objective is the mean token cross-entropy."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles

from atod_jax.algorithms import sft
from atod_jax.algorithms.base import Step
from atod_jax.core.aggregation import token_shares
from atod_jax.core.losses import LossConfig, objective


def test_the_loss_is_the_mean_nll_and_its_gradient_the_mask():
    batch, student, _ = oracles.ragged_batch(0)
    got = sft.signal(sft.Config(), Step(batch, student, None, jnp.array(0)))
    mask = np.asarray(batch.rows.action_mask)

    share = token_shares(batch.rows.action_mask, batch.rows.traj, num_traj=8, mode="token-mean")

    def loss(logp):
        stats = student.replace(logp=logp)
        return objective(
            stats, got, action_mask=batch.rows.action_mask, share=share, cfg=LossConfig()
        )[0]

    value, grad = jax.value_and_grad(loss)(student.logp)
    np.testing.assert_allclose(value, -np.asarray(student.logp)[mask].mean(), rtol=1e-6)
    np.testing.assert_allclose(grad, np.where(mask, -1.0 / mask.sum(), 0.0), rtol=1e-6)
    assert not sft.ALGORITHM.needs_teacher(sft.Config(), 0)


def test_an_empty_batch_has_a_finite_loss():
    batch, student, _ = oracles.ragged_batch(0)
    nothing = jnp.zeros_like(batch.rows.action_mask)
    batch = batch.replace(rows=batch.rows.replace(action_mask=nothing))
    got = sft.signal(sft.Config(), Step(batch, student, None, jnp.array(0)))
    share = token_shares(nothing, batch.rows.traj, num_traj=8, mode="token-mean")
    loss, _ = objective(student, got, action_mask=nothing, share=share, cfg=LossConfig())
    assert float(loss) == 0.0
