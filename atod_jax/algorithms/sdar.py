"""SDAR: the student teaches itself with a prompt that shows a demonstration (arXiv 2605.15155).

The GRPO loss plus lambda g_t (lpT_t - lp_t), g_t = stopgrad sigmoid(beta (lpT_t - lp_t)): where the
same network with privileged context likes the sampled token better, its probability is raised. `lp`
is the present policy, with gradient, so this is a term of the loss, not of the advantage; beta is
`loss.gate_beta`.
"""

import dataclasses

import jax.numpy as jnp

from atod_jax.algorithms.base import Algorithm, Step, TeacherContext, always, hybrid, teacher_of
from atod_jax.core.advantages import RewardConfig, row_advantages
from atod_jax.options.field import at_least, check, option
from atod_jax.types import Signal


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the gated term and of the reward term."""

    coef: float = option(
        0.01, "lambda, weight of the gated term; 0.01 in their runs, 0.1 in their code", at_least(0)
    )
    reward: RewardConfig = RewardConfig()

    def __post_init__(self):
        check(self)


def signal(cfg: Config, step: Step) -> Signal:
    """A_t = A_GRPO, and gate_weight = lambda on action tokens."""
    mask, teacher = step.batch.rows.action_mask, teacher_of(step)
    plain = hybrid(step, reward=row_advantages(step.batch, cfg=cfg.reward))
    return plain.replace(
        gate_weight=jnp.where(mask, cfg.coef, 0.0), teacher_logp=jnp.where(mask, teacher.logp, 0.0)
    )


ALGORITHM = Algorithm(
    Config,
    signal,
    needs_teacher=always,
    teacher=lambda cfg: TeacherContext(self_teacher=True, privileged=True),
)
