"""Coefficients as functions of the update number, evaluated inside the compiled signal.

The first update has number 1 (`TrainState.step + 1`). A schedule is arithmetic on that number, so
it costs no recompilation and its value is logged like any other metric.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from atod_jax.options.field import above, at_least, check, one_of, option

KINDS = ("linear", "cosine", "adaptive", "constant")


@dataclasses.dataclass(frozen=True)
class AnnealConfig:
    """From distillation to reward; defaults are the paper's."""

    kind: str = option(
        "linear",
        "linear | cosine | adaptive (to the gap) | constant (start values)",
        one_of(*KINDS),
    )
    kappa_start: float = option(1.0, "weight of the distillation term, at first", at_least(0))
    kappa_end: float = option(0.1, "weight of the distillation term, in the end", at_least(0))
    rho_start: float = option(1.0, "weight of the reward term, at first", at_least(0))
    rho_end: float = option(2.0, "weight of the reward term, in the end", at_least(0))
    steps: int = option(
        80, "updates from start to end, linear and cosine; 0 or less keeps the start values"
    )
    gap: float = option(
        0.5, "nats; the adaptive schedule anneals once student and teacher are closer", above(0)
    )

    def __post_init__(self):
        check(self)


def mix(
    update: Int[Array, ""] | int, *, cfg: AnnealConfig, gap: Float[Array, ""] | None = None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
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

    Raises:
      ValueError: an adaptive schedule without a gap.
    """
    if _is_constant(cfg):
        return jnp.array(cfg.kappa_start), jnp.array(cfg.rho_start)
    p = _progress(update, cfg, gap)
    kappa = cfg.kappa_start - (cfg.kappa_start - cfg.kappa_end) * p
    rho = cfg.rho_start + (cfg.rho_end - cfg.rho_start) * p
    return jnp.maximum(cfg.kappa_end, kappa), rho


def needs_teacher(update: int, *, cfg: AnnealConfig) -> bool:
    """False where kappa is known to be 0 at this update, e.g. past the end of a schedule to 0."""
    if _is_constant(cfg):
        return cfg.kappa_start > 0
    over = cfg.kind != "adaptive" and update >= cfg.steps
    return cfg.kappa_end > 0 or (cfg.kappa_start > 0 and not over)


def _is_constant(cfg: AnnealConfig) -> bool:
    """True where kappa and rho keep their start values."""
    return cfg.kind == "constant" or (cfg.kind != "adaptive" and cfg.steps <= 0)


def _progress(
    update: Int[Array, ""] | int, cfg: AnnealConfig, gap: Float[Array, ""] | None
) -> Float[Array, ""]:
    """p in [0, 1]: 0 at the start values, 1 at the end values."""
    if cfg.kind == "adaptive":
        if gap is None:
            raise ValueError("the adaptive schedule needs the gap to a teacher; score with one")
        return jnp.clip(1.0 - gap / cfg.gap, 0.0, 1.0)
    p = jnp.clip(update / cfg.steps, 0.0, 1.0)
    return p if cfg.kind == "linear" else 0.5 * (1.0 - jnp.cos(jnp.pi * p))


@dataclasses.dataclass(frozen=True)
class CurriculumConfig:
    """Soft curriculum over turns; off in the released runs and not in the paper."""

    enabled: bool = option(False, "distil later turns later; otherwise every weight is 1")
    updates_per_turn: float = option(
        6.0, "the window grows by one turn every so many updates", above(0)
    )
    softness: float = option(1.0, "turns; width of the edge of the window", above(0))
    bias: float = option(0.5, "turns; moves the edge to later turns")
    weight_min: float = option(0.05, "smallest weight", at_least(0))
    weight_max: float = option(1.0, "largest weight", at_least(0))
    warmup: int = option(0, "updates with the largest weight on every turn", at_least(0))

    def __post_init__(self):
        check(self)


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
