"""TCOD: distillation on a growing part of the episode (arXiv 2604.24005).

Front to back, the episode is cut short and grows longer; back to front, a demonstration plays the
first turns and the student the rest, which grows towards the whole. Replayed turns are history for
the student and no part of the loss. The loss is plain distillation.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Int

from atod_jax.algorithms import base
from atod_jax.records import RolloutPlan
from atod_jax.types import Signal, TokenStats, TurnBatch

DIRECTIONS = ("front", "back")
DEMONSTRATORS = ("expert", "teacher")


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the curriculum; the defaults are the ATOD authors' runs of it."""

    coef: float = 1.0  # of the log-probability gap
    direction: str = "front"  # front (to back) | back (to front)
    updates_per_turn: int = 6  # one more turn every so many updates; TCOD's own: see docs
    prefix_by: str = "expert"  # who plays the prefix: expert | teacher

    def __post_init__(self):
        for name, value, choices in (
            ("direction", self.direction, DIRECTIONS),
            ("prefix_by", self.prefix_by, DEMONSTRATORS),
        ):
            if value not in choices:
                raise ValueError(f"{name}={value!r}: choose from {', '.join(choices)}")
        if self.updates_per_turn < 1:
            raise ValueError(f"updates_per_turn={self.updates_per_turn}: must be at least 1")


def needs_teacher(cfg: Config, step: int) -> bool:
    """Always."""
    return True


def horizon(
    update: Int[Array, "..."] | int, *, max_turns: int, updates_per_turn: int
) -> Int[Array, "..."]:
    """Front to back: min(1 + floor(s / c), max_turns) turns at update s."""
    return jnp.minimum(1 + update // updates_per_turn, max_turns)


def prefix_length(
    update: Int[Array, "..."] | int, *, length: Int[Array, "..."] | int, updates_per_turn: int
) -> Int[Array, "..."]:
    """Back to front: the first max(0, (E - 1) - floor(s / c)) of E demonstrated turns."""
    return jnp.maximum(length - 1 - update // updates_per_turn, 0)


def rollout_plan(cfg: Config, step: int, max_turns: int) -> RolloutPlan:
    """The part of the episodes that the student plays at this step."""
    update, c = base.update_number(step), cfg.updates_per_turn
    if cfg.direction == "front":
        return RolloutPlan(max_turns=int(horizon(update, max_turns=max_turns, updates_per_turn=c)))

    def prefix(length: int) -> int:
        return int(prefix_length(update, length=length, updates_per_turn=c))

    return RolloutPlan(max_turns=max_turns, prefix_by=cfg.prefix_by, prefix=prefix)


def signal(
    cfg: Config,
    batch: TurnBatch,
    student: TokenStats,
    teacher: TokenStats | None,
    step: Int[Array, ""],
) -> Signal:
    """A_t = coef (lpT_t - lpS_t) on the action tokens that the student sampled.

    Args:
      cfg: options.
      batch: one step of experience, all of it.
      student: of the policy before the update.
      teacher: on the same tokens.
      step: ignored; the curriculum is in the rollout.

    Raises:
      ValueError: no teacher.
    """
    gap = cfg.coef * base.log_gap(batch, student, teacher, algorithm="tcod")
    return base.hybrid(batch, student, teacher, distill=gap)
