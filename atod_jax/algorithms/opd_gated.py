"""Gated distillation: the teacher speaks up where the rewards are bad (an extra mode of the code).

A_t = A_GRPO + beta_b coef (lpT_t - lpS_t), beta_b falling with the row's own advantage.
"""

import dataclasses

import jax
from jaxtyping import Array, Float, Int

from atod_jax.algorithms import base
from atod_jax.core import diagnostics
from atod_jax.types import Signal, TokenStats, TurnBatch


@dataclasses.dataclass(frozen=True)
class Config(base.RewardConfig):
    """Options of the gate, beside those of the reward term."""

    coef: float = 1.0  # of the log-probability gap
    gamma: float = 1.0  # sharpness
    beta_min: float = 0.0  # weight of the teacher on rows with a high advantage
    beta_max: float = 0.3  # and with a low one


def needs_teacher(cfg: Config, step: int) -> bool:
    """Always."""
    return True


def gate(reward: Float[Array, "N"], *, cfg: Config) -> Float[Array, "N"]:
    """beta_min + (beta_max - beta_min) sigmoid(-gamma A) per row."""
    return cfg.beta_min + (cfg.beta_max - cfg.beta_min) * jax.nn.sigmoid(-cfg.gamma * reward)


def signal(
    cfg: Config,
    batch: TurnBatch,
    student: TokenStats,
    teacher: TokenStats | None,
    step: Int[Array, ""],
) -> Signal:
    """A_t = A_b + beta_b coef (lpT_t - lpS_t) on action tokens.

    Args:
      cfg: options.
      batch: one step of experience, all of it.
      student: of the policy before the update.
      teacher: on the same tokens.
      step: ignored.

    Raises:
      ValueError: no teacher.
    """
    reward = base.rl_estimate(batch, cfg=cfg)
    beta = gate(reward, cfg=cfg)
    gap = cfg.coef * base.log_gap(batch, student, teacher, algorithm="opd_gated")
    return base.hybrid(
        batch,
        student,
        teacher,
        distill=beta[:, None] * gap,
        reward=reward,
        report=diagnostics.of_weights(batch, beta),
    )
