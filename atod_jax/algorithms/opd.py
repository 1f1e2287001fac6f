"""On-policy distillation: every sampled token is judged by the teacher, rewards are ignored."""

import dataclasses

import jax.numpy as jnp

from atod_jax.algorithms.base import (
    Algorithm,
    Step,
    TeacherContext,
    always,
    equal_weights,
    hybrid,
    log_gap,
)
from atod_jax.options.field import at_least, check, option
from atod_jax.types import Signal


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of plain distillation."""

    coef: float = option(1.0, "weight of the distillation term", at_least(0))
    exact: bool = option(
        False, "reverse KL over the whole vocabulary instead of the sampled token's"
    )

    def __post_init__(self):
        check(self)


def signal(cfg: Config, step: Step) -> Signal:
    """A_t = coef (lpT_t - lpS_t) on action tokens, nats: minus the sampled reverse KL.

    With `exact` the loss holds coef KL(student || teacher) instead, differentiated through the
    whole distribution: the same expected gradient for each visited state, without the variance of
    the sampled token. It is not clipped.
    """
    gap = cfg.coef * log_gap(step)
    return (
        hybrid(step, exact_kl=jnp.full_like(gap, cfg.coef))
        if cfg.exact
        else hybrid(step, distill=gap)
    )


ALGORITHM = Algorithm(
    Config,
    signal,
    needs_teacher=always,
    teacher=lambda cfg: TeacherContext(exact_kl=cfg.exact),
    turn_weights=equal_weights,
)
