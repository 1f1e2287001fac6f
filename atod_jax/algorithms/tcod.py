"""TCOD: distillation on a growing part of the episode (arXiv 2604.24005).

Front to back, the episode is cut short and grows longer; back to front, a demonstration plays the
first turns and the student the rest, which grows towards the whole. Replayed turns are history for
the student and no part of the loss. The loss is plain distillation.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Int

from atod_jax.algorithms.base import (
    Algorithm,
    Step,
    always,
    equal_weights,
    hybrid,
    log_gap,
    update_number,
)
from atod_jax.options.field import at_least, check, one_of, option
from atod_jax.records import RolloutPlan
from atod_jax.types import Signal

DIRECTIONS = ("front", "back")
DEMONSTRATORS = ("expert", "teacher")


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the curriculum; the defaults are the ATOD authors' runs of it."""

    coef: float = option(1.0, "weight of the distillation term", at_least(0))
    direction: str = option(
        "front", "front (to back): episodes grow | back (to front): replayed prefixes shrink",
        one_of(*DIRECTIONS),
    )  # fmt: skip
    updates_per_turn: int = option(
        6, "one more turn every so many updates; their own number is in METHOD.md", at_least(1)
    )
    prefix_by: str = option(
        "expert", "who plays the prefix: expert | teacher", one_of(*DEMONSTRATORS)
    )

    def __post_init__(self):
        check(self)


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
    update, c = update_number(step), cfg.updates_per_turn
    if cfg.direction == "front":
        return RolloutPlan(max_turns=int(horizon(update, max_turns=max_turns, updates_per_turn=c)))

    def prefix(length: int) -> int:
        return int(prefix_length(update, length=length, updates_per_turn=c))

    return RolloutPlan(max_turns=max_turns, prefix_by=cfg.prefix_by, prefix=prefix)


def signal(cfg: Config, step: Step) -> Signal:
    """A_t = coef (lpT_t - lpS_t) on the action tokens that the student sampled."""
    return hybrid(step, distill=cfg.coef * log_gap(step))


ALGORITHM = Algorithm(
    Config, signal, needs_teacher=always, rollout_plan=rollout_plan, turn_weights=equal_weights
)
