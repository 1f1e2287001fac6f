"""GRPO: the group-relative advantage alone, without a teacher (arXiv 2402.03300).

With `estimator="gigpo"` also the comparison of turns that saw the same observation (2505.10978).
"""

import dataclasses

from jaxtyping import Array, Int

from atod_jax.algorithms import base
from atod_jax.types import Signal, TokenStats, TurnBatch


@dataclasses.dataclass(frozen=True)
class Config(base.RewardConfig):
    """Options: those of the reward term, nothing else."""


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
    """A_t = (r_b - mu_g) / (sigma_g + eps) on every action token of row b.

    Args:
      cfg: options.
      batch: one step of experience, all of it.
      student: of the policy before the update.
      teacher: ignored.
      step: ignored.
    """
    return base.hybrid(batch, student, None, reward=base.rl_estimate(batch, cfg=cfg))
