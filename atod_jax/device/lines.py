"""Where the action tokens of a line stand: from streams by row to streams by line, and back.

A line has `A` places for action tokens, taken in order by those of its rows. Only these leave the
last layer of a model and reach the head.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from atod_jax.types import Rows

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)  # of all places there could be; one program each
FEW = 256  # so many places cost less than another program


class Room(NamedTuple):
    """Places for action tokens; static under jit. More tokens than that give NaN."""

    line: int  # A, of a line
    head: int  # of the lines of one device, see `core.fused.token_stats`

    @classmethod
    def of(cls, tokens: np.ndarray, *, most: int, micro_lines: int, shards: int) -> "Room":
        """Room for all lines of a batch.

        Args:
          tokens: i32[L] action tokens of every line.
          most: tokens that a line could have.
          micro_lines: lines of a micro-batch; `shards` devices each take an equal part of them.
          shards: see there.
        """
        line = _share(most, int(tokens.max()))
        device = micro_lines // shards
        return cls(line, _share(line * device, int(tokens.reshape(-1, device).sum(axis=1).max())))


def _share(whole: int, needed: int) -> int:
    """The smallest share of the whole that is enough; all of it where that is little."""
    shares = (math.ceil(whole * share) for share in SHARES)
    return next(n for n in shares if n >= needed and (n >= FEW or n == whole))


class Places(NamedTuple):
    """The action tokens of some lines."""

    lengths: Int[Array, "L M"]  # columns of every row
    column: Int[Array, "L A"]  # that predicts the token of a place
    source: Int[Array, "L A"]  # number of the token among the M * R of the line
    used: Bool[Array, "L A"]
    place: Int[Array, "L MR"]  # of a token; any where it is none
    fits: Bool[Array, "L"]  # whether the line has places for all

    def by_line(self, stream: Array) -> Array:
        """[N, R] -> [L, A], zeros in places that are not used; NaN where a line lacks places."""
        flat = stream.reshape(self.place.shape)
        flat = jnp.take_along_axis(flat, self.source, axis=1)
        flat = jnp.where(self.used, flat, jnp.zeros((), flat.dtype))
        if not jnp.issubdtype(flat.dtype, jnp.floating):
            return flat
        return jnp.where(self.fits[:, None], flat, jnp.nan)

    def by_row(self, stream: Array, mask: Bool[Array, "N R"]) -> Array:
        """[L, A] -> [N, R], zeros off the mask."""
        flat = jnp.take_along_axis(stream, self.place, axis=1, mode="clip")
        flat = jnp.where(self.fits[:, None], flat, jnp.nan)
        return jnp.where(mask, flat.reshape(mask.shape), 0.0)

    def row(self, response_columns: int) -> Int[Array, "L A"]:
        """The row of its line that the token of a place belongs to."""
        return self.source // response_columns


def places_of(rows: Rows, room: int) -> Places:
    """The places of the action tokens of all lines, `room` a line."""
    assert rows.lines is not None
    lines, (rows_n, width) = rows.lines.tokens.shape[0], rows.action_mask.shape
    per_line = rows_n // lines
    prompt = rows.lines.prompt_length.reshape(lines, per_line)
    count = jnp.sum(rows.action_mask, axis=1, dtype=jnp.int32).reshape(lines, per_line)
    lengths = jnp.maximum(prompt + count - 1, 0)
    start = jnp.cumsum(lengths, axis=1) - lengths
    ends = jnp.cumsum(count, axis=1)
    j = jnp.broadcast_to(jnp.arange(room)[None], (lines, room))
    row = jnp.sum(j[:, :, None] >= ends[:, None, :], axis=2)
    used, row = row < per_line, jnp.minimum(row, per_line - 1)

    def of_row(x: Array) -> Array:
        return jnp.take_along_axis(x, row, axis=1)

    token = jnp.where(used, j - of_row(ends - count), 0)
    column = jnp.maximum(of_row(start + prompt) - 1 + token, 0)
    place = (ends - count)[:, :, None] + jnp.arange(width)[None, None]
    return Places(
        lengths=lengths,
        column=jnp.where(used, column, 0),
        source=row * width + token,
        used=used,
        place=place.reshape(lines, -1),
        fits=ends[:, -1] <= room,
    )
