"""The vocabulary head of one device as Pallas TPU kernels, with the mathematics of `head_tiles`.

A tile's logits live and die in VMEM. Three kernels: statistics and d_states keep a block of tokens
and stream the vocabulary past it, d_matrix keeps vocabulary rows and streams the tokens. The block
that stays is also the accumulator. Nothing is padded or transposed in HBM (but XLA copies a matrix
whose width is no multiple of 128): the undefined numbers beyond the ends are replaced by zeros.

VMEM for t tokens, v rows, widths D and D' (teacher), b bytes per number, at most: b (D + D') for
each token and each row, twice for what streams, and b D more for it (a copy in another layout);
4 D for each token or row of a gradient; 12 t v + 4096 t per head for float32 tiles and per-token
numbers, one to a row of 128 lanes. bfloat16, D = 2560, D' = 4096, t = 256, v = 128: 12.4 MiB for
d_states. Found by compiling for v4 to v6e; `_Tiles.of` shrinks what is asked for until it fits.
A streamed byte of bfloat16 serves t (d_states 2 t, d_matrix 2 v) operations; below some 240 (v5e)
or 560 (v6e) memory sets the pace, not the matrix unit. So what stays is kept large.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from atod_jax.core.head_tiles import (
    LOWEST,
    NOWHERE,
    Cotangents,
    Factors,
    Head,
    Partial,
    Saved,
    empty_partial,
    logit_gradient,
    logits,
    merge_two,
    tile_partial,
)

VMEM_BYTES = 16 * 2**20  # of one core of the smallest supported chip, and the compiler's default

_USABLE_BYTES = 15 * 2**20  # of it by the estimate, which the compiler may exceed a little
_MATRIX_SIDE = 128  # rows that keep the matrix unit busy
_LANES = 128  # of a vector register; the last axis is stored in multiples of it
_SUBLANES = 16  # likewise the axis before, for bfloat16
_WORK_TILES = 3  # float32 tiles alive at once, per head: logits, their exponentials, a product
_WORK_COLUMNS = 8  # per-token numbers alive at once, per head, each in lanes of its own


def forward(
    head: Head, *, scale: float, token_block: int, vocab_block: int, keep_bytes: int = 0
) -> tuple[Partial, None]:
    """Statistics of all vocabulary rows of this device, for every token.

    Args:
      head: states, matrices and actions.
      scale: 1 / temperature.
      token_block: at most so many tokens per tile.
      vocab_block: at most so many vocabulary rows per tile.
      keep_bytes: unused; no logit ever reaches main memory.

    Raises:
      ValueError: not even the smallest tile fits into VMEM.
    """
    like = jax.eval_shape(lambda: empty_partial((1,), teacher=head.teacher is not None))
    fields = jax.tree.structure(like)
    width = fields.num_leaves
    tiles = _Tiles.of(head, token_block, vocab_block, keep_rows=False, width=width)
    kernel = functools.partial(_statistics_kernel, tiles, scale, fields)
    out = tiles.call(kernel, head, name="head_statistics")
    return jax.tree.unflatten(fields, [out[:, k] for k in range(width)]), None


def backward(
    head: Head,
    kept: None,
    *,
    saved: Saved,
    ct: Cotangents,
    scale: float,
    token_block: int,
    vocab_block: int,
) -> tuple[Float[Array, "T D"], Float[Array, "V D"]]:
    """Float32 gradients of the student's states and matrix, logits computed again tile by tile.

    Args:
      head: as given to `forward`.
      kept: nothing.
      saved: what follows from the statistics of `forward`.
      ct: gradients that come in.
      scale, token_block, vocab_block: as given to `forward`.
    """
    numbers, fields = jax.tree.flatten((saved, ct))
    width = head.student.matrix.shape[1]

    def gradient(product: Callable, name: str, *, keep_rows: bool) -> Array:
        tiles = _Tiles.of(head, token_block, vocab_block, keep_rows=keep_rows, width=width)
        kernel = functools.partial(_gradient_kernel, tiles, scale, fields, product)
        return tiles.call(kernel, head, jnp.stack(numbers, axis=1), name=name)

    d_states = gradient(_states_product, "head_d_states", keep_rows=False)
    d_matrix = gradient(_matrix_product, "head_d_matrix", keep_rows=True)
    return d_states, d_matrix


# ------------------------------------------------------------------- kernels


def _statistics_kernel(tiles: "_Tiles", scale: float, fields: Any, *refs: Any) -> None:
    """Merges one tile into `out`, the fields of a Partial side by side."""
    *inputs, out = refs
    shape = (tiles.token_block, 1)  # Mosaic has no use for a lone axis: a column per number
    columns = range(fields.num_leaves)
    teacher = jax.tree.unflatten(fields, columns).teacher is not None

    @pl.when(pl.program_id(1) == 0)
    def _():
        out[...] = _side_by_side(empty_partial(shape, teacher=teacher))

    def tile(place):
        z, y, hit, _ = tiles.load(inputs, scale, place)
        part = jax.tree.map(lambda x: x.reshape(shape), tile_partial(z, y, hit=hit))
        running = jax.tree.unflatten(fields, [out[:, k : k + 1] for k in columns])
        out[...] = _side_by_side(merge_two(running, part))

    tiles.visit(tile)


def _gradient_kernel(
    tiles: "_Tiles", scale: float, fields: Any, product: Callable, *refs: Any
) -> None:
    """Adds one tile's product to `out`, f32[t, D] or f32[v, D]."""
    *inputs, numbers, out = refs

    @pl.when(pl.program_id(1) == 0)
    def _():
        out[...] = jnp.zeros(out.shape, jnp.float32)

    def tile(place):
        z, y, hit, student = tiles.load(inputs, scale, place)
        table = tiles.token_rows(numbers, place)
        saved, ct = jax.tree.unflatten(fields, [table[:, k] for k in range(table.shape[1])])
        dz = logit_gradient(z, y, hit=hit, saved=saved, ct=ct)
        out[...] += product((dz * scale).astype(student.matrix.dtype), student)

    tiles.visit(tile)


def _states_product(dz: Float[Array, "t v"], student: Factors) -> Float[Array, "t D"]:
    return jnp.dot(dz, student.matrix, preferred_element_type=jnp.float32)


def _matrix_product(dz: Float[Array, "t v"], student: Factors) -> Float[Array, "v D"]:
    return jnp.einsum("tv,td->vd", dz, student.states, preferred_element_type=jnp.float32)


def _side_by_side(part: Partial) -> Float[Array, "t fields"]:
    return jnp.concatenate(jax.tree.leaves(part), axis=1)


# ------------------------------------------------------------------- tiles


class _Place(NamedTuple):
    """One tile of the grid."""

    token: Array  # the first of its tokens
    row: Array  # the first of its vocabulary rows
    hanging: bool  # it may hang over an end


@dataclasses.dataclass(frozen=True)
class _Tiles:
    """How tokens and vocabulary rows are cut, and which of the two stays while the other streams.

    The grid is (blocks of what stays, blocks of what streams).
    """

    tokens: int
    vocab: int
    token_block: int
    vocab_block: int
    keep_rows: bool  # vocabulary rows stay; else tokens do
    width: int  # of the result, f32[T, width], or f32[V, width] with `keep_rows`

    @classmethod
    def of(
        cls, head: Head, token_block: int, vocab_block: int, *, keep_rows: bool, width: int
    ) -> "_Tiles":
        """The largest tiles, up to the blocks asked for, that fit into VMEM.

        What stays is made as large as possible first, for the traffic with HBM, but not at the
        price of a side too short for the matrix unit.
        """
        tokens, vocab = head.action.shape[0], head.bias.shape[0]
        token_sizes = _sizes(token_block, tokens, _SUBLANES)
        vocab_sizes = _sizes(vocab_block, vocab, _LANES)
        if keep_rows:
            tried = [(t, v) for v in vocab_sizes for t in token_sizes]
        else:
            tried = [(t, v) for t in token_sizes for v in vocab_sizes]
        tried.sort(key=lambda sides: min(sides) < _MATRIX_SIDE)  # stable
        tiles = [cls(tokens, vocab, t, v, keep_rows, width) for t, v in tried]
        found = next((x for x in tiles if x.vmem_bytes(head) <= _USABLE_BYTES), None)
        if found is None:
            least = tiles[-1]
            raise ValueError(
                f"heads of width {[m.matrix.shape[1] for m in head.models]} need "
                f"{least.vmem_bytes(head) / 2**20:.1f} MiB of VMEM even with "
                f"head.token_block={least.token_block}, head.vocab_block={least.vocab_block}; "
                f"a kernel has {VMEM_BYTES // 2**20} MiB: use bfloat16 or head.backend='tiles'"
            )
        return found

    def vmem_bytes(self, head: Head) -> int:
        """An upper estimate of the VMEM a kernel needs; the module's docstring has the formula."""
        t, v, own = self.token_block, self.vocab_block, head.student
        states = sum(_row_bytes(model.states) for model in head.models)
        rows = sum(_row_bytes(model.matrix) for model in head.models)
        result = 4 * _padded(self.width)
        work = len(head.models) * 4 * t * (_WORK_TILES * v + _WORK_COLUMNS * _LANES)
        if self.keep_rows:
            return v * (rows + result) + t * (2 * states + _row_bytes(own.states)) + work
        return t * (states + result) + v * (2 * rows + _row_bytes(own.matrix)) + work

    def call(
        self, kernel: Callable[..., None], head: Head, *numbers: Float[Array, "T k"], name: str
    ) -> Array:
        """Runs `kernel` on every tile of the head and of further numbers per token."""
        bias_spec = pl.BlockSpec((1, self.vocab_block), lambda *at: (0, self.order(at)[1]))
        action = head.action.astype(jnp.int32)[:, None]
        operands = [(action, self.by_token(1)), (head.bias[None], bias_spec)]
        for model in head.models:
            operands.append((model.states, self.by_token(model.states.shape[1])))
            operands.append((model.matrix, self.by_row(model.matrix.shape[1])))
        operands += [(x, self.by_token(x.shape[1])) for x in numbers]
        arrays, specs = zip(*operands, strict=True)
        length, by = (self.vocab, self.by_row) if self.keep_rows else (self.tokens, self.by_token)
        counts = pl.cdiv(self.tokens, self.token_block), pl.cdiv(self.vocab, self.vocab_block)
        return pl.pallas_call(
            kernel,
            grid=self.order(counts),
            in_specs=specs,
            out_specs=by(self.width),
            out_shape=jax.ShapeDtypeStruct((length, self.width), jnp.float32),
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
            ),
            interpret=_interpret(),
            name=name,
        )(*arrays)

    def order(self, pair: tuple) -> tuple:
        """(tokens, vocabulary) -> (stays, streams), and back: both are the same exchange."""
        return tuple(pair[::-1]) if self.keep_rows else tuple(pair)

    def by_token(self, width: int) -> pl.BlockSpec:
        """Blocks [t, width] of an array [T, width]."""
        mode = None if self.keep_rows else pl.Buffered(1)  # what stays needs no second buffer
        return pl.BlockSpec(
            (self.token_block, width), lambda *at: (self.order(at)[0], 0), pipeline_mode=mode
        )

    def by_row(self, width: int) -> pl.BlockSpec:
        """Blocks [v, width] of an array [V, width]."""
        mode = pl.Buffered(1) if self.keep_rows else None
        return pl.BlockSpec(
            (self.vocab_block, width), lambda *at: (self.order(at)[1], 0), pipeline_mode=mode
        )

    # Below: inside a kernel.

    def visit(self, tile: Callable[["_Place"], None]) -> None:
        """Runs `tile` on the grid's tile; only those that hang over an end pay for cleaning."""
        i, j = self.order((pl.program_id(0), pl.program_id(1)))
        token, row = i * self.token_block, j * self.vocab_block
        if self.tokens % self.token_block == 0 and self.vocab % self.vocab_block == 0:
            tile(_Place(token, row, False))
            return
        inside = (token + self.token_block <= self.tokens) & (row + self.vocab_block <= self.vocab)
        pl.when(inside)(functools.partial(tile, _Place(token, row, False)))
        pl.when(jnp.logical_not(inside))(functools.partial(tile, _Place(token, row, True)))

    def token_rows(self, ref: Any, place: "_Place") -> Array:
        """A block by token, zeros past the last token."""
        return _cleaned(ref, place.token, self.tokens) if place.hanging else ref[...]

    def vocab_rows(self, ref: Any, place: "_Place") -> Array:
        """A block by vocabulary row, zeros past the last row."""
        return _cleaned(ref, place.row, self.vocab) if place.hanging else ref[...]

    def load(self, inputs: list, scale: float, place: "_Place") -> tuple:
        """(student's logits, teacher's or None, where the column is the action, student's tile)."""
        action, bias, *rest = inputs
        number = place.row + jax.lax.broadcasted_iota(jnp.int32, (1, self.vocab_block), 1)
        offset = bias[...]
        if place.hanging:
            offset = jnp.where(number < self.vocab, offset, LOWEST)
            number = jnp.where(number < self.vocab, number, NOWHERE)
        models = [
            Factors(self.token_rows(states, place), self.vocab_rows(matrix, place))
            for states, matrix in zip(rest[::2], rest[1::2], strict=True)
        ]
        z, *y = (logits(model, offset[0], scale=scale) for model in models)
        return z, y[0] if y else None, action[...] == number, models[0]


def _cleaned(ref: Any, first: Array, end: int) -> Array:
    """A block whose rows count from `first`, zeros from row `end` on: 0 * NaN would stay NaN."""
    row = first + jax.lax.broadcasted_iota(jnp.int32, (ref.shape[0], 1), 0)
    block = ref[...]
    return jnp.where(row < end, block, jnp.zeros_like(block))


def _sizes(block: int, length: int, unit: int) -> list[int]:
    """Block sizes to try, falling: all of the axis or whole registers, as Mosaic wants them."""
    sizes = [length if block >= length else min(length, max(unit, block // unit * unit))]
    while sizes[-1] > unit:
        sizes.append(max(unit, sizes[-1] // 2 // unit * unit))
    return sizes


def _padded(width: int) -> int:
    return -(-width // _LANES) * _LANES


def _row_bytes(x: Array) -> int:
    return _padded(x.shape[1]) * x.dtype.itemsize


def _interpret() -> bool:
    """Off a TPU the kernels run as plain JAX: slowly, for tests."""
    return jax.default_backend() != "tpu"
