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

KINDS = ("linear", "cosine", "adaptive", "constant")
Scalar = Float[Array, ""] | np.floating | float


@dataclasses.dataclass(frozen=True)
class AnnealConfig:
    """From distillation to reward; defaults are the paper's."""

    kind: str = "linear"  # linear | cosine | adaptive | constant (stays at the start values)
    kappa_start: float = 1.0  # of the distillation term
    kappa_end: float = 0.1
    rho_start: float = 1.0  # of the reward term
    rho_end: float = 2.0
    steps: int = 80  # updates of linear and cosine; 0 or less keeps the start values
    gap: float = (
        0.5  # nats; adaptive begins to anneal when student and teacher are closer than this
    )

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"anneal kind {self.kind!r}: choose from {', '.join(KINDS)}")
        if self.kind == "adaptive" and self.gap <= 0:
            raise ValueError(f"gap={self.gap}: the adaptive schedule needs a distance > 0 nats")


def mix(
    update: Int[Array, ""] | int,
    *,
    cfg: AnnealConfig,
    gap: Float[Array, ""] | None = None,
    xp: ModuleType = jnp,
) -> tuple[Scalar, Scalar]:
    """(kappa, rho) at an update: kappa from start to end and rho likewise, at progress p.

    linear: p = clip(update / steps, 0, 1); kappa = max(kappa_end, start - (start - end) p).
    cosine: the same between the same ends, slow at both: p <- (1 - cos(pi p)) / 2.
    adaptive: p = clip(1 - gap / cfg.gap, 0, 1): the teacher fades as fast as the student closes in
    on it, whatever the update number. It has no memory, so a resumed run needs none.
    Example: update 1 of 80, linear, gives (0.98875, 1.0125).

    Args:
      update: from 1.
      cfg: the schedule.
      gap: mean |log p_teacher - log p_student| of this batch's action tokens, nats (adaptive).
      xp: `jax.numpy`, or `numpy` to know the value on the host.

    Raises:
      ValueError: an adaptive schedule without a gap.
    """
    p, annealed = _progress(update, cfg, gap, xp)
    kappa = cfg.kappa_start - (cfg.kappa_start - cfg.kappa_end) * p
    rho = cfg.rho_start + (cfg.rho_end - cfg.rho_start) * p
    return xp.maximum(cfg.kappa_end, kappa) if annealed else kappa, rho


def needs_teacher(update: int, *, cfg: AnnealConfig) -> bool:
    """False where kappa is known to be 0 at this update, e.g. past the end of a schedule to 0."""
    if cfg.kind == "adaptive":
        return bool(cfg.kappa_start or cfg.kappa_end)
    return bool(mix(update, cfg=cfg, xp=np)[0] != 0)


def _progress(
    update: Int[Array, ""] | int, cfg: AnnealConfig, gap: Float[Array, ""] | None, xp: ModuleType
) -> tuple[Scalar, bool]:
    if cfg.kind == "adaptive":
        if gap is None:
            raise ValueError("the adaptive schedule needs the gap to a teacher; score with one")
        return xp.clip(1.0 - gap / cfg.gap, 0.0, 1.0), True
    if cfg.kind == "constant" or cfg.steps <= 0:
        return xp.zeros(())[()], False
    p = xp.clip(update / cfg.steps, 0.0, 1.0)
    return (p if cfg.kind == "linear" else 0.5 * (1.0 - xp.cos(xp.pi * p))), True


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
