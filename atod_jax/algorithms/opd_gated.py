"""Gated distillation: the teacher weighs more where rewards are bad (an extra mode of the code).

A_t = A_GRPO + beta_b coef (lpT_t - lpS_t), beta_b falling with the row's own advantage.
"""

import dataclasses

import jax
from jaxtyping import Array, Float

from atod_jax.algorithms.base import Algorithm, Step, always, hybrid, log_gap
from atod_jax.core import diagnostics
from atod_jax.core.advantages import RewardConfig, row_advantages
from atod_jax.options.field import at_least, check, option
from atod_jax.types import Signal


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the gate and of the reward term."""

    coef: float = option(1.0, "weight of the distillation term", at_least(0))
    gamma: float = option(1.0, "sharpness of the gate", at_least(0))
    beta_min: float = option(
        0.0, "weight of the teacher on rows with a high advantage", at_least(0)
    )
    beta_max: float = option(0.3, "weight of the teacher on rows with a low one", at_least(0))
    reward: RewardConfig = RewardConfig()

    def __post_init__(self):
        check(self)


def gate(reward: Float[Array, "N"], *, cfg: Config) -> Float[Array, "N"]:
    """beta_min + (beta_max - beta_min) sigmoid(-gamma A) per row."""
    return cfg.beta_min + (cfg.beta_max - cfg.beta_min) * jax.nn.sigmoid(-cfg.gamma * reward)


def turn_weights(cfg: Config, step: Step) -> Float[Array, "N"]:
    """The gate of every row."""
    return gate(row_advantages(step.batch, cfg=cfg.reward), cfg=cfg)


def signal(cfg: Config, step: Step) -> Signal:
    """A_t = A_b + beta_b coef (lpT_t - lpS_t) on action tokens."""
    reward = row_advantages(step.batch, cfg=cfg.reward)
    beta = gate(reward, cfg=cfg)
    return hybrid(
        step,
        distill=beta[:, None] * (cfg.coef * log_gap(step)),
        reward=reward,
        report=diagnostics.of_weights(step.batch, beta),
    )


ALGORITHM = Algorithm(Config, signal, needs_teacher=always, turn_weights=turn_weights)
