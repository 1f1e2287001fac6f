"""Causal attention inside the turns of a line, by the kernel of the platform.

A line holds several turns one after another; a column sees the columns of its own turn up to
itself. What follows the last turn is a turn of its own, so every column sees something and no
kernel leaves memory unwritten. One function per platform, all with the same meaning: cuDNN on
NVIDIA, splash attention on TPU, and the formula written out elsewhere.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from atod_jax.types import BATCH_AXES, TENSOR_AXIS

QUERIES = 256  # columns whose scores exist at a time where they are written out
TILE = 128  # kernels of libraries want whole tiles of columns, cuDNN's for its gradients
SPLASH_TILES = 5  # that the TPU's kernel takes at a time, at most
_MASKED = -1e30  # finite, so that a row of padding stays free of nan


class Turns(NamedTuple):
    """The turns of every line: `lengths` says it all, the rest follows from it."""

    lengths: Int[Array, "L M"]  # columns of each, one after another from column 0; 0 = no turn
    number: Int[Array, "L W"]  # of the turn that a column belongs to; M behind the last one
    position: Int[Array, "L W"]  # of the column inside its turn

    @property
    def starts(self) -> Int[Array, "L M"]:
        """The first column of each."""
        return jnp.cumsum(self.lengths, axis=1) - self.lengths


def turns_of(lengths: Int[Array, "L M"], columns: int) -> Turns:
    """The turns of lines of `columns` columns."""
    ends = jnp.cumsum(lengths, axis=1)
    column = jnp.arange(columns)[None]
    number = jnp.sum(column[:, :, None] >= ends[:, None, :], axis=2, dtype=jnp.int32)
    before = jnp.pad(ends, ((0, 0), (1, 0)))
    return Turns(lengths, number, column - jnp.take_along_axis(before, number, axis=1))


def columns_of(x: Array, pick: Int[Array, "L A"] | None) -> Array:
    """[L, W, ...] -> [L, A, ...], the picked columns of every line; None: all of them."""
    if pick is None:
        return x
    return jnp.take_along_axis(x, pick.reshape(*pick.shape, *(1,) * (x.ndim - 2)), axis=1)


def kernel_for(dtype: Any, head_dim: int) -> str:
    """What computes attention here: "cudnn", "splash" or "written"; see `attend`."""
    platform = jax.default_backend()
    if platform == "gpu" and dtype == jnp.bfloat16 and head_dim <= 256 and head_dim % 8 == 0:
        return "cudnn"
    return "splash" if platform == "tpu" and head_dim % 128 == 0 else "written"


def attend(
    q: Float[Array, "L T h d"],
    k: Float[Array, "L W kv d"],
    v: Float[Array, "L W kv d"],
    *,
    turns: Turns,
    pick: Int[Array, "L T"] | None = None,
) -> Float[Array, "L T h d"]:
    """softmax(q k^T / sqrt(d)) v over the earlier columns of the same turn.

    Args:
      q: queries, of all columns; only where scores are written out they may be of the picked
        columns alone.
      k, v: keys and values, each shared by h / kv query heads.
      turns: of the lines.
      pick: the columns wanted; None: all.
    """
    kernel = kernel_for(q.dtype, q.shape[-1])
    if kernel == "written":
        return _written(q, k, v, turns=turns, pick=pick)
    columns = q.shape[1]
    missing = -columns % TILE
    q, k, v = (jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0))) for x in (q, k, v))
    turns = turns_of(turns.lengths, columns + missing) if missing else turns
    y = on_each_device(_cudnn if kernel == "cudnn" else _splash, (q, k, v), turns)
    return columns_of(y[:, :columns], pick)


def on_each_device(
    kernel: Callable[..., Any], heads: tuple[Array, Array, Array], lines: Any
) -> Any:
    """A kernel's results [L, T, h, ...], of which every device computes its own lines and heads.

    Left to itself, the compiler would gather what a call of a library reads.

    Args:
      kernel: of queries, keys, values and `lines`.
      heads: queries, keys and values.
      lines: a tree of arrays by line.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return kernel(*heads, lines)
    q, k, _ = heads
    devices = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    rows = BATCH_AXES if q.shape[0] % devices == 0 else None
    split = TENSOR_AXIS if k.shape[2] % mesh.shape[TENSOR_AXIS] == 0 else None
    each = PartitionSpec(rows, None, split)
    specs = (each, each, each, PartitionSpec(rows))
    return jax.shard_map(kernel, in_specs=specs, out_specs=each, check_vma=False)(*heads, lines)


# ------------------------------------------------------------------- NVIDIA


def _cudnn(q: Array, k: Array, v: Array, turns: Turns) -> Array:
    """cuDNN's fused attention.

    With one turn a line nothing but the causal mask is needed: what follows a turn is seen by
    nobody. Several turns need the packed layout, which JAX has (and tests) but does not yet pass
    through `jax.nn.dot_product_attention`; cuDNN has it for Hopper and later.
    """
    if turns.lengths.shape[1] == 1:
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")
    cudnn = library()
    if not cudnn.check_compute_capability("9.0"):
        return _written(q, k, v, turns=turns, pick=None)
    size, offset = packed_layout(turns.lengths, q.shape[1])
    return cudnn.dot_product_attention(
        q,
        k,
        v,
        q_seqlen=size,
        kv_seqlen=size,
        q_offsets=offset,
        kv_offsets=offset,
        scale=q.shape[-1] ** -0.5,
        mask_type=cudnn.MaskType.PADDING_CAUSAL,
    )


@functools.cache
def library() -> Any:
    """JAX's own module around cuDNN's attention.

    Up to JAX 0.11.0 it computes where the turns of keys begin from the number of query heads;
    asked with the keys in the place of the queries, every version answers right.
    """
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    elements = cudnn._fix_seqlen_offsets

    def corrected(size: Array, key_size: Array, *offsets_query_key: Array) -> tuple[Array, ...]:
        offset, key_offset, query, key = offsets_query_key
        size_and_offset = elements(size, key_size, offset, key_offset, query, key)[::2]
        of_keys = elements(size, key_size, offset, key_offset, key, key)[1::2]
        return size_and_offset[0], of_keys[0], size_and_offset[1], of_keys[1]

    cudnn._fix_seqlen_offsets = corrected
    return cudnn


def packed_layout(
    lengths: Int[Array, "L M"], columns: int
) -> tuple[Int[Array, "L M1"], Int[Array, "L M2"]]:
    """Lengths and offsets of the turns, the columns behind them included, as cuDNN wants them:
    those that are not empty first, -1 for the others."""
    rest = columns - jnp.sum(lengths, axis=1, keepdims=True)
    size = jnp.concatenate([lengths, rest], axis=1)
    size = jnp.take_along_axis(size, jnp.argsort(size == 0, axis=1, stable=True), axis=1)
    ends = jnp.cumsum(size, axis=1)
    offset = jnp.where(size > 0, ends - size, -1)
    offset = jnp.pad(offset, ((0, 0), (0, 1)), constant_values=-1)
    return jnp.where(size > 0, size, -1), offset


# ------------------------------------------------------------------- TPU


def _splash(q: Array, k: Array, v: Array, turns: Turns) -> Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    columns, heads = q.shape[1:3]
    block = TILE * max(n for n in range(1, SPLASH_TILES + 1) if columns % (n * TILE) == 0)
    mask = masks.MultiHeadMask([masks.CausalMask((columns, columns))] * heads)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        use_fused_bwd_kernel=True,
    )
    kernel: Any = splash.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1)
    ids = splash.SegmentIds(q=turns.number, kv=turns.number)
    q, k, v = (x.swapaxes(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))
    return jax.vmap(kernel)(q, k, v, ids).swapaxes(1, 2)


# ------------------------------------------------------------------- everywhere


def _written(q: Array, k: Array, v: Array, *, turns: Turns, pick: Array | None) -> Array:
    """Attention written out: a training step of a tiny model on a CPU is faster than with
    `jax.nn.dot_product_attention`.

    Scores exist for `QUERIES` columns at a time, and are computed again in the backward pass:
    those of a long prompt are larger than the model.
    """
    columns = q.shape[1]
    at = jnp.broadcast_to(jnp.arange(columns)[None], q.shape[:2]) if pick is None else pick
    one = functools.partial(_block, k=k, v=v, number=turns.number)
    if columns <= QUERIES:
        return one((q, at))
    q, at = (
        jnp.pad(x, [(0, 0), (0, -columns % QUERIES)] + [(0, 0)] * (x.ndim - 2)) for x in (q, at)
    )
    blocks = jax.lax.map(jax.checkpoint(one, prevent_cse=False), (_blocks(q), _blocks(at)))
    return _joined(blocks)[:, :columns]


def _blocks(x: Array) -> Array:
    """[n, blocks * QUERIES, ...] -> [blocks, n, QUERIES, ...]."""
    return jnp.swapaxes(x.reshape(x.shape[0], -1, QUERIES, *x.shape[2:]), 0, 1)


def _joined(x: Array) -> Array:
    """The inverse of `_blocks`."""
    x = jnp.swapaxes(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def _block(query: tuple[Array, Array], k: Array, v: Array, number: Array) -> Array:
    """Attention of some queries and their columns over all columns."""
    q, at = query
    n, t, h, d = q.shape
    own = jnp.take_along_axis(number, at, axis=1)
    column = jnp.arange(k.shape[1])[None, None, :]
    seen = (own[:, :, None] == number[:, None, :]) & (column <= at[:, :, None])
    grouped = q.reshape(n, t, k.shape[2], -1, d)
    scores = jnp.einsum("ntgrd,nlgd->ngrtl", grouped, k, preferred_element_type=jnp.float32)
    scores = jnp.where(seen[:, None, None], scores * d**-0.5, _MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("ngrtl,nlgd->ntgrd", weights, v).reshape(n, t, h, d)
