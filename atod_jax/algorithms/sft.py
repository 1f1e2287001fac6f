"""Supervised fine-tuning on recorded actions: plain cross-entropy, no teacher model, no reward."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Int

from atod_jax.core import diagnostics
from atod_jax.types import Signal, TokenStats, TurnBatch


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of supervised training."""

    weight: float = 1.0  # of the cross-entropy per token


def needs_teacher(cfg: Config, step: int) -> bool:
    """Never."""
    return False


def signal(
    cfg: Config,
    batch: TurnBatch,
    student: TokenStats,
    teacher: TokenStats | None,
    step: Int[Array, ""],
) -> Signal:
    """ce_weight = weight on action tokens, advantage 0: the loss is the mean token nll, in nats.

    Args:
      cfg: options.
      batch: recorded turns.
      student: of the model before the update; only logged.
      teacher: ignored.
      step: ignored.
    """
    rows = batch.rows
    return Signal(
        advantage=jnp.zeros_like(student.logp),
        ce_weight=jnp.where(rows.action_mask, cfg.weight, 0.0),
        old_logp=student.logp,
        diagnostics=diagnostics.of_student(batch, student),
    )
