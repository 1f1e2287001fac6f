"""Sums and means over masks and over the segments (trajectories, groups) that rows belong to.

A padding row carries the segment id `num`, one past the last: the reductions drop it and `spread`
hands it a fill value, so no caller needs a branch for padding. Empty segments reduce to 0 for sums
and means and to +-inf for minima and maxima.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from atod_jax.types import Mean


def masked_sum(x: Float[Array, "*S"], mask: Bool[Array, "*S"]) -> Float[Array, ""]:
    """Sum of `x` where `mask`; the other values may be anything, nan included."""
    return jnp.sum(jnp.where(mask, x, 0.0))


def masked_mean(x: Float[Array, "*S"], mask: Bool[Array, "*S"]) -> Mean:
    """Mean of `x` where `mask`, as (sum, count)."""
    return Mean(total=masked_sum(x, mask), weight=jnp.sum(row_count(mask)))


def padded_mean(x: Float[Array, "*S"], mask: Bool[Array, "*S"]) -> Mean:
    """`masked_mean` of a stream that is 0 off the mask anyway: spares the masked copy of it."""
    return Mean(total=jnp.sum(x), weight=jnp.sum(row_count(mask)))


def row_count(mask: Bool[Array, "*S"]) -> Float[Array, "..."]:
    """True entries along the last axis, as floats. One form for all, so that XLA counts once."""
    return jnp.sum(mask, axis=-1, dtype=jnp.float32)


def row_mean(x: Float[Array, "N R"], mask: Bool[Array, "N R"]) -> Float[Array, "N"]:
    """Mean of each row where `mask`; 0 for a row without tokens."""
    return jnp.sum(jnp.where(mask, x, 0.0), axis=1) / jnp.maximum(row_count(mask), 1.0)


def segment_count(ids: Int[Array, "N"], *, num: int) -> Float[Array, "M"]:
    """Rows per segment, as floats."""
    return segment_sum(jnp.ones(ids.shape), ids, num=num)


def segment_sum(x: Float[Array, "N"], ids: Int[Array, "N"], *, num: int) -> Float[Array, "M"]:
    """Sum of `x` per segment."""
    return jax.ops.segment_sum(x, ids, num_segments=num)


def segment_mean(x: Float[Array, "N"], ids: Int[Array, "N"], *, num: int) -> Float[Array, "M"]:
    """Mean of `x` per segment."""
    return segment_sum(x, ids, num=num) / jnp.maximum(segment_count(ids, num=num), 1.0)


def segment_min(x: Shaped[Array, "N"], ids: Int[Array, "N"], *, num: int) -> Shaped[Array, "M"]:
    """Minimum of `x` per segment."""
    return jax.ops.segment_min(x, ids, num_segments=num)


def segment_max(x: Shaped[Array, "N"], ids: Int[Array, "N"], *, num: int) -> Shaped[Array, "M"]:
    """Maximum of `x` per segment."""
    return jax.ops.segment_max(x, ids, num_segments=num)


def segment_centre(
    x: Float[Array, "N"], ids: Int[Array, "N"], *, samples: Int[Array, "N"], num: int
) -> Float[Array, "N"]:
    """`x` minus the mean of its segment, the mean taken over the rows listed in `samples`.

    `samples` equals `ids` except for rows that must not count, which carry `num`. The segment's
    minimum is subtracted first, so equal values give exactly 0: in float32 their plain mean is off
    by a rounding error, which a later division by a tiny deviation blows up.
    """
    shifted = x - spread(segment_min(x, samples, num=num), ids, fill=0.0)
    return shifted - spread(segment_mean(shifted, samples, num=num), ids, fill=0.0)


def segment_std(x: Float[Array, "N"], ids: Int[Array, "N"], *, num: int) -> Float[Array, "M"]:
    """Unbiased (n-1) standard deviation per segment, in two passes; 0 for a segment of one."""
    freedom = jnp.maximum(segment_count(ids, num=num) - 1.0, 1.0)
    squares = segment_centre(x, ids, samples=ids, num=num) ** 2
    return jnp.sqrt(segment_sum(squares, ids, num=num) / freedom)


def spread(
    per_segment: Shaped[Array, "M"], ids: Int[Array, "N"], *, fill: float | int | bool
) -> Shaped[Array, "N"]:
    """The value of each row's segment; `fill` on padding rows."""
    return per_segment.at[ids].get(mode="fill", fill_value=fill)
