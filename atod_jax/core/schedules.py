"""Coefficients as functions of the update number, evaluated inside the compiled signal.

The first update has number 1 (`TrainState.step + 1`). A schedule is arithmetic on that number, so
it costs no recompilation and its value is logged like any other metric.
"""

import dataclasses
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

KINDS = ("linear", "constant")
Scalar = Float[Array, ""] | np.floating | float


@dataclasses.dataclass(frozen=True)
class AnnealConfig:
    """From distillation to reward over `steps` updates; defaults are the paper's."""

    kind: str = "linear"  # linear | constant (stays at the start values)
    kappa_start: float = 1.0  # of the distillation term
    kappa_end: float = 0.1
    rho_start: float = 1.0  # of the reward term
    rho_end: float = 2.0
    steps: int = 80  # updates; 0 or less keeps the start values

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"anneal kind {self.kind!r}: choose from {', '.join(KINDS)}")


def mix(
    update: Int[Array, ""] | int, *, cfg: AnnealConfig, xp: ModuleType = jnp
) -> tuple[Scalar, Scalar]:
    """(kappa, rho) at an update, with p = clip(update / steps, 0, 1).

    kappa = max(kappa_end, kappa_start - (kappa_start - kappa_end) p) and
    rho = rho_start + (rho_end - rho_start) p. Example: update 1 of 80 gives (0.98875, 1.0125).

    Args:
      update: from 1.
      cfg: the schedule.
      xp: `jax.numpy`, or `numpy` to know the value on the host.
    """
    annealed = cfg.kind == "linear" and cfg.steps > 0
    p = xp.clip(update / cfg.steps, 0.0, 1.0) if annealed else xp.zeros(())
    kappa = cfg.kappa_start - (cfg.kappa_start - cfg.kappa_end) * p
    rho = cfg.rho_start + (cfg.rho_end - cfg.rho_start) * p
    return xp.maximum(cfg.kappa_end, kappa) if annealed else kappa, rho


@dataclasses.dataclass(frozen=True)
class CurriculumConfig:
    """Soft curriculum over turns; off in the released runs and not in the paper."""

    updates_per_turn: float = 6.0  # the window grows by one turn every so many updates
    softness: float = 1.0  # turns
    bias: float = 0.5  # turns
    weight_min: float = 0.05
    weight_max: float = 1.0
    warmup: int = 0  # updates with the largest weight on every turn


def soft_curriculum(
    update: Int[Array, ""], turn: Int[Array, "N"], *, cfg: CurriculumConfig
) -> Float[Array, "N"]:
    """c_k = clip(sigmoid((W - k + bias) / softness), min, max), W = 1 + update / updates_per_turn.

    Later turns are distilled later; `turn` counts from 0.
    """
    window = 1.0 + update / cfg.updates_per_turn
    weight = jax.nn.sigmoid((window - turn + cfg.bias) / cfg.softness)
    weight = jnp.clip(weight, cfg.weight_min, cfg.weight_max)
    return jnp.where(update < cfg.warmup, cfg.weight_max, weight)
