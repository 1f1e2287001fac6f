"""GRPO: the group-relative advantage alone, without a teacher (arXiv 2402.03300)."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Int

from atod_jax.core import diagnostics, masked
from atod_jax.core.advantages import GroupConfig, row_advantages
from atod_jax.types import Signal, TokenStats, TurnBatch


@dataclasses.dataclass(frozen=True)
class Config:
    """Options; defaults are those of the released runs for ALFWorld and WebShop."""

    statistics: str = "turns"  # of a group: over its turn-rows | over its "trajectories"
    scale: bool = True  # divide by the group's standard deviation
    invalid_penalty: float = 0.1  # off the score of a row whose action is invalid

    def __post_init__(self):
        _ = self.group  # building it checks the values

    @property
    def group(self) -> GroupConfig:
        return GroupConfig(
            statistics=self.statistics, scale=self.scale, invalid_penalty=self.invalid_penalty
        )


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
    rows = batch.rows
    per_row = row_advantages(batch, cfg=cfg.group)
    advantage = jnp.where(rows.action_mask, per_row[:, None], 0.0)
    own = {"rl/abs_mean": masked.masked_mean(jnp.abs(advantage), rows.action_mask)}
    return Signal(
        advantage=advantage,
        ce_weight=jnp.zeros_like(student.logp),
        old_logp=student.logp,
        norm=diagnostics.token_count(rows),
        diagnostics=diagnostics.of_student(batch, student) | own,
    )
