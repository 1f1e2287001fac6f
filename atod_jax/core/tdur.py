"""T-DUR: how much each turn of a trajectory deserves to be distilled.

A turn counts when student and teacher disagree on it or the student was unsure. Weights compare the
turns of one trajectory, so they need the whole batch: they are computed before it is cut into
minibatches.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from atod_jax.core import masked
from atod_jax.options.field import above_to, at_least, check, one_of, option, within

SCORES = ("softor", "divergence_only", "entropy_only")
_DEGENERATE = 1e-8  # a range below this makes every turn 0.5 instead of stretching noise


@dataclasses.dataclass(frozen=True)
class TdurConfig:
    """Options of the turn weights; defaults are those of the released runs."""

    score: str = option(
        "softor", "softor (of disagreement and uncertainty) | divergence_only | entropy_only",
        one_of(*SCORES),
    )  # fmt: skip
    min_turns: int = option(3, "trajectories with fewer turns keep weight 1", at_least(0))
    min_divergence: float = option(
        0.01, "nats; a trajectory below it on every turn keeps weight 1", at_least(0)
    )
    top_rho: float = option(
        1.0, "share of the turns of a trajectory that keep their score",
        above_to(0, 1, "1 keeps every turn"),
    )  # fmt: skip
    smoothing: float = option(0.0, "w <- (1 - smoothing) w + smoothing", within(0, 1))
    mean_preserving: bool = option(
        False, "token-weighted mean weight 1 per trajectory; only with top_rho = 1"
    )
    ratio_min: float = option(
        0.5, "mean_preserving: smallest weight over the mean weight", at_least(0)
    )
    ratio_max: float = option(
        2.0, "mean_preserving: largest weight over the mean weight", at_least(0)
    )

    def __post_init__(self):
        check(self)


def turn_signals(
    student_logp: Float[Array, "N R"],
    teacher_logp: Float[Array, "N R"],
    *,
    action_mask: Bool[Array, "N R"],
) -> tuple[Float[Array, "N"], Float[Array, "N"]]:
    """(divergence d, uncertainty h) per row: token means of |lpS - lpT| and of -lpS, in nats.

    A row without tokens has d = h = 0.
    """
    gap = jnp.abs(student_logp - teacher_logp)
    return masked.row_mean(gap, action_mask), masked.row_mean(-student_logp, action_mask)


def turn_weights(
    divergence: Float[Array, "N"],
    uncertainty: Float[Array, "N"],
    *,
    traj: Int[Array, "N"],
    length: Num[Array, "N"],
    num_traj: int,
    cfg: TdurConfig,
) -> Float[Array, "N"]:
    """One weight per row: z = 1 - (1 - d~)(1 - h~), d~ and h~ min-max scaled in the trajectory.

    Trajectories with fewer than `min_turns` rows or no divergence of at least `min_divergence` keep
    weight 1, as do padding rows. Then, if asked for: all but the top share of turns to 0 (ties
    kept), smoothing, token-weighted mean 1.

    Args:
      divergence: d of each row, nats.
      uncertainty: h of each row, nats.
      traj: trajectory of each row, `num_traj` on padding rows.
      length: action tokens of each row.
      num_traj: trajectories in the batch.
      cfg: options.
    """
    z = _score(divergence, uncertainty, traj, num_traj=num_traj, cfg=cfg)
    if cfg.top_rho < 1:
        z = _keep_top(z, traj, num_traj=num_traj, share=cfg.top_rho)
    z = (1 - cfg.smoothing) * z + cfg.smoothing
    if cfg.mean_preserving and cfg.top_rho == 1:
        z = _unit_mean(z, traj, length=length, num_traj=num_traj, cfg=cfg)
    enough = masked.segment_count(traj, num=num_traj) >= cfg.min_turns
    diverse = masked.segment_max(divergence, traj, num=num_traj) >= cfg.min_divergence
    return jnp.where(masked.spread(enough & diverse, traj, fill=False), z, 1.0)


def token_weights(
    student_logp: Float[Array, "N R"],
    teacher_logp: Float[Array, "N R"],
    *,
    action_mask: Bool[Array, "N R"],
    min_divergence: float,
    smoothing: float,
    quantile: float = 0.98,
) -> Float[Array, "N R"]:
    """The ablation with tokens in place of turns: Soft-OR of |lpS - lpT| and -lpS, one per token.

    Both are min-max scaled over the action tokens of the batch, -lpS after a cut at its `quantile`
    (linear interpolation). All 1 if no token has a divergence of `min_divergence` nats, and 1 off
    the mask.
    """
    divergence = jnp.abs(student_logp - teacher_logp)
    cut = _masked_quantile(-student_logp, action_mask, quantile)
    d = _token_min_max(divergence, action_mask)
    h = _token_min_max(jnp.minimum(-student_logp, cut), action_mask)
    z = 1 - (1 - d) * (1 - h)
    z = (1 - smoothing) * z + smoothing
    largest = jnp.max(divergence, where=action_mask, initial=-jnp.inf)
    return jnp.where(action_mask & (largest >= min_divergence), z, 1.0)


def _masked_quantile(
    x: Float[Array, "N R"], mask: Bool[Array, "N R"], q: float
) -> Float[Array, ""]:
    ascending = jnp.sort(jnp.where(mask, x, jnp.inf).reshape(-1))
    last = jnp.maximum(jnp.sum(mask) - 1, 0)
    place = q * last
    below = jnp.floor(place).astype(jnp.int32)
    low, high = ascending[below], ascending[jnp.minimum(below + 1, last)]
    return low + (place - below) * (high - low)


def _token_min_max(x: Float[Array, "N R"], mask: Bool[Array, "N R"]) -> Float[Array, "N R"]:
    low = jnp.min(x, where=mask, initial=jnp.inf)
    high = jnp.max(x, where=mask, initial=-jnp.inf)
    return jnp.clip((x - low) / jnp.maximum(high - low, _DEGENERATE), 0.0, 1.0)


def _score(
    divergence: Float[Array, "N"],
    uncertainty: Float[Array, "N"],
    traj: Int[Array, "N"],
    *,
    num_traj: int,
    cfg: TdurConfig,
) -> Float[Array, "N"]:
    d = _min_max(divergence, traj, num_traj=num_traj)
    if cfg.score == "divergence_only":
        return d
    h = _min_max(uncertainty, traj, num_traj=num_traj)
    return h if cfg.score == "entropy_only" else 1 - (1 - d) * (1 - h)


def _min_max(x: Float[Array, "N"], traj: Int[Array, "N"], *, num_traj: int) -> Float[Array, "N"]:
    low = masked.spread(masked.segment_min(x, traj, num=num_traj), traj, fill=0.0)
    high = masked.spread(masked.segment_max(x, traj, num=num_traj), traj, fill=0.0)
    flat = high - low <= _DEGENERATE
    return jnp.where(flat, 0.5, (x - low) / jnp.where(flat, 1.0, high - low))


def _keep_top(
    z: Float[Array, "N"], traj: Int[Array, "N"], *, num_traj: int, share: float
) -> Float[Array, "N"]:
    """Zeroes the turns below the q-th largest z of their trajectory, q = max(1, ceil(K share))."""
    rows = z.shape[0]
    # in double precision and once per possible K, because float32 moves the ceiling
    kept = np.array([max(1, math.ceil(k * share)) for k in range(rows + 1)])
    turns = masked.segment_count(traj, num=num_traj).astype(jnp.int32)
    start = jnp.cumsum(turns) - turns
    descending = z[jnp.lexsort((-z, traj))]
    last_kept = jnp.minimum(start + jnp.asarray(kept)[turns] - 1, rows - 1)
    threshold = masked.spread(descending[last_kept], traj, fill=0.0)
    return jnp.where(z >= threshold, z, 0.0)


def _unit_mean(
    z: Float[Array, "N"],
    traj: Int[Array, "N"],
    *,
    length: Num[Array, "N"],
    num_traj: int,
    cfg: TdurConfig,
) -> Float[Array, "N"]:
    """r = clip(z / mean(z)) over its own mean, both means weighted by tokens."""
    tokens = masked.segment_sum(length.astype(z.dtype), traj, num=num_traj)

    def mean(x: Float[Array, "N"]) -> Float[Array, "N"]:
        total = masked.segment_sum(length * x, traj, num=num_traj)
        return masked.spread(total / jnp.maximum(tokens, 1.0), traj, fill=1.0)

    ratio = jnp.clip(z / (mean(z) + 1e-8), cfg.ratio_min, cfg.ratio_max)
    some = masked.spread(tokens > 0, traj, fill=False)
    return jnp.where(some, ratio / (mean(ratio) + 1e-8), z)
