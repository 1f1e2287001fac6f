"""SOD: distillation that trusts the teacher less on turns where it has drifted away (2605.07725).

The opposite sign of T-DUR: disagreement attenuates. The reward term stays.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from atod_jax.algorithms import base
from atod_jax.core import diagnostics, masked
from atod_jax.core.advantages import first_rows
from atod_jax.core.tdur import turn_signals
from atod_jax.types import Signal, TokenStats, TurnBatch


@dataclasses.dataclass(frozen=True)
class Config(base.RewardConfig):
    """Options of the weights, beside those of the reward term."""

    coef: float = 1.0  # of the distillation term
    delta: float = 0.2  # weights are at most 1 + delta; 0.2 in the runs, 0.5 in their function
    divergence_eps: float = 1e-6  # nats, added to every divergence


def needs_teacher(cfg: Config, step: int) -> bool:
    """Always."""
    return True


def stepwise_weights(
    divergence: Float[Array, "N"],
    traj: Int[Array, "N"],
    turn: Int[Array, "N"],
    *,
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


def signal(
    cfg: Config,
    batch: TurnBatch,
    student: TokenStats,
    teacher: TokenStats | None,
    step: Int[Array, ""],
) -> Signal:
    """A_t = A_b + coef w_k (lpT_t - lpS_t) on action tokens.

    Args:
      cfg: options.
      batch: one step of experience, all of it.
      student: of the policy before the update.
      teacher: on the same tokens.
      step: ignored.

    Raises:
      ValueError: no teacher.
    """
    rows = batch.rows
    gap = base.log_gap(batch, student, teacher, algorithm="sod")
    divergence, _ = turn_signals(student.logp, teacher.logp, rows.action_mask)
    weight = stepwise_weights(
        divergence,
        rows.traj,
        rows.turn,
        num_traj=batch.returns.shape[0],
        delta=cfg.delta,
        eps=cfg.divergence_eps,
    )
    return base.hybrid(
        batch,
        student,
        teacher,
        distill=cfg.coef * weight[:, None] * gap,
        reward=base.rl_estimate(batch, cfg=cfg),
        report=diagnostics.of_weights(batch, weight),
    )
