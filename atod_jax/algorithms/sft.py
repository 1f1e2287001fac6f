"""Supervised fine-tuning on recorded actions: plain cross-entropy, no teacher model, no reward."""

import dataclasses

import jax.numpy as jnp

from atod_jax.algorithms.base import Algorithm, Step
from atod_jax.options.field import at_least, check, option
from atod_jax.types import Signal


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of supervised training."""

    weight: float = option(1.0, "weight of the cross-entropy per token", at_least(0))

    def __post_init__(self):
        check(self)


def signal(cfg: Config, step: Step) -> Signal:
    """ce_weight = weight on action tokens, and no surrogate: the loss is the mean nll, in nats."""
    mask = step.batch.rows.action_mask
    return Signal(
        advantage=jnp.zeros(mask.shape),
        ce_weight=jnp.where(mask, cfg.weight, 0.0),
        diagnostics={},
    )


ALGORITHM = Algorithm(Config, signal, supervised=True, scores_student=False)
