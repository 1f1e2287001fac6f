"""SOD: distillation that trusts the teacher less on turns where it has drifted away (2605.07725).

The opposite sign of T-DUR: disagreement attenuates. The reward term stays.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from atod_jax.algorithms.base import Algorithm, Step, always, hybrid, log_gap, teacher_of
from atod_jax.core import diagnostics, masked
from atod_jax.core.advantages import RewardConfig, first_rows, row_advantages
from atod_jax.core.tdur import turn_signals
from atod_jax.options.field import above, at_least, check, option
from atod_jax.types import Signal


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the weights and of the reward term."""

    coef: float = option(1.0, "weight of the distillation term", at_least(0))
    delta: float = option(
        0.2, "turn weights are at most 1 + delta; 0.2 in their runs, 0.5 in their code", at_least(0)
    )
    divergence_eps: float = option(1e-6, "nats; added to every divergence", above(0))
    reward: RewardConfig = RewardConfig()

    def __post_init__(self):
        check(self)


def stepwise_weights(
    divergence: Float[Array, "N"],
    traj: Int[Array, "N"],
    *,
    turn: Int[Array, "N"],
    num_traj: int,
    delta: float,
    eps: float,
) -> Float[Array, "N"]:
    """w_k = min(prod over u < k of (d_u + eps) / (d_{u+1} + eps), 1 + delta), w_0 = 1, per row.

    The product telescopes, so w_k = min((d_0 + eps) / (d_k + eps), 1 + delta): only the cap is on
    the output. Turn 0 is the first turn of the trajectory that is in the batch.

    Args:
      divergence: d of each row, nats.
      traj: trajectory of each row, `num_traj` on padding rows (they get weight 1).
      turn: order of the rows of a trajectory.
      num_traj: trajectories in the batch.
      delta: cap above 1.
      eps: added to every divergence.
    """
    first = first_rows(traj, turn, num=num_traj)
    d_first = masked.segment_sum(jnp.where(first, divergence, 0.0), traj, num=num_traj)
    ratio = (masked.spread(d_first, traj, fill=0.0) + eps) / (divergence + eps)
    return jnp.where(first | (traj >= num_traj), 1.0, jnp.minimum(ratio, 1 + delta))


def turn_weights(cfg: Config, step: Step) -> Float[Array, "N"]:
    """w_k of every row."""
    rows = step.batch.rows
    divergence, _ = turn_signals(
        step.student.logp, teacher_of(step).logp, action_mask=rows.action_mask
    )
    return stepwise_weights(
        divergence,
        rows.traj,
        turn=rows.turn,
        num_traj=step.batch.returns.shape[0],
        delta=cfg.delta,
        eps=cfg.divergence_eps,
    )


def signal(cfg: Config, step: Step) -> Signal:
    """A_t = A_b + coef w_k (lpT_t - lpS_t) on action tokens."""
    weight = turn_weights(cfg, step)
    return hybrid(
        step,
        distill=cfg.coef * weight[:, None] * log_gap(step),
        reward=row_advantages(step.batch, cfg=cfg.reward),
        report=diagnostics.of_weights(step.batch, weight),
    )


ALGORITHM = Algorithm(Config, signal, needs_teacher=always, turn_weights=turn_weights)
