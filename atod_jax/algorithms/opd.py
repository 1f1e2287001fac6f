"""On-policy distillation: every sampled token is judged by the teacher, rewards are ignored."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Int

from atod_jax.algorithms import base
from atod_jax.types import Signal, TokenStats, TurnBatch


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of plain distillation."""

    coef: float = 1.0  # of the distillation term
    exact: bool = False  # reverse KL over the whole vocabulary instead of the sampled token's


def needs_teacher(cfg: Config, step: int) -> bool:
    """Always."""
    return True


def teacher_context(cfg: Config) -> base.TeacherContext:
    """An exact KL needs the teacher's whole distribution."""
    return base.TeacherContext(states=cfg.exact)


def signal(
    cfg: Config,
    batch: TurnBatch,
    student: TokenStats,
    teacher: TokenStats | None,
    step: Int[Array, ""],
) -> Signal:
    """A_t = coef (lpT_t - lpS_t) on action tokens, nats: minus the sampled reverse KL.

    With `exact` the loss holds coef KL(student || teacher) instead, differentiated through the
    whole distribution: the same expected gradient for each visited state, without the variance of
    the sampled token. It is not clipped.

    Args:
      cfg: options.
      batch: one step of experience, all of it.
      student: of the policy before the update.
      teacher: on the same tokens.
      step: ignored.

    Raises:
      ValueError: no teacher.
    """
    gap = cfg.coef * base.log_gap(batch, student, teacher, algorithm="opd")
    if cfg.exact:
        return base.hybrid(batch, student, teacher, exact_kl=jnp.full_like(gap, cfg.coef))
    return base.hybrid(batch, student, teacher, distill=gap)
