"""GRPO: the group-relative advantage alone, without a teacher (arXiv 2402.03300).

With `estimator="gigpo"` also the comparison of turns that saw the same observation (2505.10978).
"""

import dataclasses

from atod_jax.algorithms.base import Algorithm, Step, hybrid
from atod_jax.core.advantages import RewardConfig, row_advantages
from atod_jax.types import Signal


@dataclasses.dataclass(frozen=True)
class Config:
    """Options: those of the reward term, nothing else."""

    reward: RewardConfig = RewardConfig()


def signal(cfg: Config, step: Step) -> Signal:
    """A_t = (r_b - mu_g) / (sigma_g + eps) on every action token of row b."""
    step = step._replace(teacher=None)  # even if there is one, it has no say
    return hybrid(step, reward=row_advantages(step.batch, cfg=cfg.reward))


ALGORITHM = Algorithm(Config, signal)
