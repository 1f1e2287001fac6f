"""What the reference implementation logs and no run of the package does: for its golden cases."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from atod_jax.core import masked


def runs(
    mask: Bool[Array, "N R"], *, limit: int
) -> tuple[Int[Array, "N L"], Int[Array, "N L"], Int[Array, "N"]]:
    """(start, end, count) of the maximal runs of True in each row; end is exclusive.

    The turns of a whole conversation kept as one row. At most `limit` runs are listed per row,
    unused entries are -1; `count` is the true number.
    """
    edge = jnp.pad(mask, ((0, 0), (1, 1)))
    columns = jnp.arange(mask.shape[1] + 1)

    def places(flags: Bool[Array, "L"]) -> Int[Array, "M"]:
        found = jnp.flatnonzero(flags, size=limit, fill_value=-1)
        return jnp.where(found < 0, -1, columns[found])

    starts, ends = edge[:, 1:] & ~edge[:, :-1], ~edge[:, 1:] & edge[:, :-1]
    return jax.vmap(places)(starts), jax.vmap(places)(ends), jnp.sum(starts, axis=1)


def by_turn(
    x: Float[Array, "N R"], mask: Bool[Array, "N R"], *, turn: Int[Array, "N"], last: int
) -> tuple[Float[Array, "K"], Float[Array, "K"]]:
    """(token mean of `x`, rows with tokens) per turn index 0..last; later turns join the last."""
    bucket = jnp.minimum(turn, last)
    tokens = jnp.sum(mask, axis=1, dtype=jnp.float32)
    total = masked.segment_sum(jnp.sum(jnp.where(mask, x, 0.0), axis=1), bucket, num=last + 1)
    weight = masked.segment_sum(tokens, bucket, num=last + 1)
    rows = masked.segment_sum((tokens > 0).astype(jnp.float32), bucket, num=last + 1)
    return total / jnp.maximum(weight, 1.0), rows
