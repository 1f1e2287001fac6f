"""On-policy distillation: every sampled token is judged by the teacher, rewards are ignored."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Int

from atod_jax.core import diagnostics, masked
from atod_jax.types import Signal, TokenStats, TurnBatch


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of plain distillation."""

    coef: float = 1.0  # of the log-probability gap


def needs_teacher(cfg: Config, step: int) -> bool:
    """Always."""
    return True


def signal(
    cfg: Config,
    batch: TurnBatch,
    student: TokenStats,
    teacher: TokenStats | None,
    step: Int[Array, ""],
) -> Signal:
    """A_t = coef (lpT_t - lpS_t) on action tokens, nats: minus the sampled reverse KL.

    Args:
      cfg: options.
      batch: one step of experience, all of it.
      student: of the policy before the update.
      teacher: on the same tokens.
      step: ignored.

    Raises:
      ValueError: no teacher.
    """
    if teacher is None:
        raise ValueError("opd has teacher=None: score the batch with a teacher first")
    rows = batch.rows
    gap = jnp.where(rows.action_mask, teacher.logp - student.logp, 0.0)
    advantage = cfg.coef * gap
    own = {"opd/abs_mean": masked.masked_mean(jnp.abs(advantage), rows.action_mask)}
    return Signal(
        advantage=advantage,
        ce_weight=jnp.zeros_like(student.logp),
        old_logp=student.logp,
        norm=diagnostics.token_count(rows),
        diagnostics=diagnostics.of_student(batch, student)
        | diagnostics.of_teacher(rows, student, teacher)
        | own,
    )
