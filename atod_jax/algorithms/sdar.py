"""SDAR: the student teaches itself with a prompt that shows a demonstration (arXiv 2605.15155).

The GRPO loss plus lambda g_t (lpT_t - lp_t), g_t = stopgrad sigmoid(beta (lpT_t - lp_t)): where the
same network with privileged context likes the sampled token better, its probability is raised. `lp`
is the present policy, with gradient, so this is a term of the loss, not of the advantage; beta is
`loss.gate_beta`.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Int

from atod_jax.algorithms import base
from atod_jax.types import Signal, TokenStats, TurnBatch


@dataclasses.dataclass(frozen=True)
class Config(base.RewardConfig):
    """Options of the gated term, beside those of the reward term."""

    coef: float = 0.01  # lambda; 0.01 in the runs, 0.1 in their code


def needs_teacher(cfg: Config, step: int) -> bool:
    """Always; see `teacher_context` for who it is."""
    return True


def teacher_context(cfg: Config) -> base.TeacherContext:
    """The student itself, shown a demonstration of the task."""
    return base.TeacherContext(self_teacher=True, privileged=True)


def signal(
    cfg: Config,
    batch: TurnBatch,
    student: TokenStats,
    teacher: TokenStats | None,
    step: Int[Array, ""],
) -> Signal:
    """A_t = A_GRPO, and gate_weight = lambda on action tokens.

    Args:
      cfg: options.
      batch: one step of experience, all of it.
      student: of the policy before the update.
      teacher: the same weights on prompts with privileged context.
      step: ignored.

    Raises:
      ValueError: no teacher.
    """
    mask = batch.rows.action_mask
    base.log_gap(batch, student, teacher, algorithm="sdar")  # refuses a missing teacher
    plain = base.hybrid(batch, student, teacher, reward=base.rl_estimate(batch, cfg=cfg))
    return plain.replace(
        gate_weight=jnp.where(mask, cfg.coef, 0.0), teacher_logp=jnp.where(mask, teacher.logp, 0.0)
    )
