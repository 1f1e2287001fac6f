"""Supervised fine-tuning on recorded actions: plain cross-entropy, no teacher model, no reward."""

import dataclasses

import jax.numpy as jnp

from atod_jax.algorithms.base import Algorithm, Step
from atod_jax.core import diagnostics
from atod_jax.options.field import at_least, check, option
from atod_jax.types import Signal


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of supervised training."""

    weight: float = option(1.0, "weight of the cross-entropy per token", at_least(0))

    def __post_init__(self):
        check(self)


def signal(cfg: Config, step: Step) -> Signal:
    """ce_weight = weight on action tokens, advantage 0: the loss is the mean token nll, in nats."""
    student = step.student
    return Signal(
        advantage=jnp.zeros_like(student.logp),
        ce_weight=jnp.where(step.batch.rows.action_mask, cfg.weight, 0.0),
        old_logp=student.logp,
        diagnostics=diagnostics.of_student(step.batch, student),
    )


ALGORITHM = Algorithm(Config, signal, supervised=True)
