"""Playing with a model: prompts are read once, then every slot is fed one token at a time.

A slot is a row of the cache. Its prompt stands in the columns from 0; what is drawn since the last
`commit` stands in `recent`, where all slots write the same column. So a step writes in place, no
slot waits for another, and the kernel reads a contiguous prefix of every row. Layers are not
stacked: a stack would be sliced, that is copied, in every step.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from atod_jax.models.attention import library, on_each_device, turns_of
from atod_jax.models.block import ModelConfig, kernel_of_config, run_block
from atod_jax.models.stack import blocks_of, in_compute_type, read
from atod_jax.models.transformer import embedded, final_norm, rope_of
from atod_jax.sharding import split_rows
from atod_jax.types import TENSOR_AXIS

Layers = tuple[Array, ...]  # one array a layer


class Form(NamedTuple):
    """The order in which arrays [slots, columns, heads, width] are stored: as they are read."""

    k: tuple[int, ...]
    v: tuple[int, ...]


KERNEL = Form(k=(0, 1, 2, 3), v=(0, 1, 2, 3))
PRODUCTS = Form(k=(0, 2, 3, 1), v=(0, 2, 1, 3))  # a matrix per slot and head, nothing to transpose


class Cache(struct.PyTreeNode, kw_only=True):
    """Keys and values of what the slots have read and written."""

    k: Layers  # each [B, S, kv, hd], in the order of the form
    v: Layers
    length: Int[Array, "B"]  # columns of k and v in use
    recent_k: Layers  # each [B, C, kv, hd], in the order of the form
    recent_v: Layers
    written: Int[Array, ""]  # columns of these in use, in all slots
    form: Form = struct.field(pytree_node=False)

    @property
    def columns(self) -> int:
        """S."""
        return self.k[0].shape[self.form.k.index(1)]


class Prompts(NamedTuple):
    """Keys and values of the prompts of some lines."""

    k: Layers  # each [L, W, kv, hd]
    v: Layers


def serve(config: ModelConfig, params: Any) -> Any:
    """The weights as playing reads them: in the compute type, one tree a layer.

    Matrices that read the same input become one where a kernel computes attention: a step is so
    short that starting a product costs as much as the product. Layers that are apart already may be
    given alone.

    Returns: {"embed", "norm", "head" if untied, "blocks": a tuple of block trees}.
    """
    rest = {name: params[name] for name in ("embed", "norm", "head") if name in params}
    cast_tree = in_compute_type(config, rest | {"blocks": blocks_of(params)})
    if kernel_of_config(config) == "written":
        return cast_tree
    return cast_tree | {"blocks": tuple(_widened(block) for block in cast_tree["blocks"])}


def _widened(block: Any) -> Any:
    """A block with one matrix for queries, keys and values, and one for gate and up; as it is
    where heads are split over devices, or adapters belong to each."""
    mesh = jax.sharding.get_abstract_mesh()
    attn = block["attn"]
    if "lora_a" in attn["q"] or not (mesh.empty or mesh.shape[TENSOR_AXIS] == 1):
        return block
    rest = {name: x for name, x in attn.items() if name not in ("q", "k", "v")}
    block = block | {"attn": rest | {"qkv": _joined(attn["q"], attn["k"], attn["v"], axis=-2)}}
    if "mlp" in block:
        mlp = block["mlp"]
        wide = _joined(mlp["gate"], mlp["up"], axis=-1)
        block = block | {"mlp": {"gate_up": wide, "down": mlp["down"]}}
    return block


def _joined(*matrices: Any, axis: int) -> Any:
    return jax.tree.map(lambda *x: jnp.concatenate(x, axis=axis), *matrices)


def prefill(
    config: ModelConfig, weights: Any, tokens: Int[Array, "L W"], lengths: Int[Array, "L M"]
) -> tuple[Float[Array, "L M D"], Prompts]:
    """Reads lines of prompts.

    Args:
      weights: of `serve`.
      tokens: prompts one after another.
      lengths: of the prompts; 0 where there is none.

    Returns:
      The final-normed state of each prompt's last token, and keys and values for `enter`.
    """
    turns = turns_of(lengths, tokens.shape[1])
    pick = jnp.maximum(turns.starts + lengths - 1, 0)
    x = split_rows(embedded(config, weights, tokens))
    rope = rope_of(config, turns.position)
    x, kept = read(config, weights["blocks"], x, rope=rope, turns=turns, pick=pick)
    k, v = zip(*kept, strict=True)
    return final_norm(config, weights, x), Prompts(k, v)


def empty_cache(config: ModelConfig, slots: int, columns: int, *, recent: int) -> Cache:
    """A cache of slots of `columns` columns, with room for `recent` tokens between commits."""

    def layers(columns: int, order: tuple[int, ...]) -> Layers:
        shape = (slots, columns, config.num_kv_heads, config.head_dim)
        zeros = jnp.zeros([shape[axis] for axis in order], config.dtype)
        return (zeros,) * config.num_layers

    form = KERNEL if kernel_of_config(config) == "cudnn" else PRODUCTS
    return Cache(
        k=layers(columns, form.k),
        v=layers(columns, form.v),
        length=jnp.zeros(slots, jnp.int32),
        recent_k=layers(recent, form.k),
        recent_v=layers(recent, form.v),
        written=jnp.zeros((), jnp.int32),
        form=form,
    )


def longer_cache(cache: Cache, columns: int) -> Cache:
    """The same cache with `columns` columns, not fewer than it has."""

    def padded(x: Array, order: tuple[int, ...], _: Array) -> Array:
        widths = [(0, 0)] * 4
        widths[order.index(1)] = (0, columns - cache.columns)
        return jnp.pad(x, widths)

    return _mapped(padded, cache, (cache.k, cache.v))


def _mapped(
    function: Callable[..., Array], cache: Cache, others: tuple[Sequence[Array], Sequence[Array]]
) -> Cache:
    """The cache with function(array, its order, the other array) for every array of k and v."""
    k, v = (
        tuple(function(x, order, y) for x, y in zip(xs, ys, strict=True))
        for xs, order, ys in zip((cache.k, cache.v), cache.form, others, strict=True)
    )
    return cache.replace(k=k, v=v)


def _at(order: tuple[int, ...], slot: Any, columns: Any) -> tuple[Any, ...]:
    """The index of columns of slots in an array of that order."""
    index: list[Any] = [slice(None)] * 4
    index[0], index[order.index(1)] = slot, columns
    return tuple(index)


def enter(
    cache: Cache,
    prompts: Prompts,
    *,
    slot: Int[Array, "n"],
    line: Int[Array, "n"],
    start: Int[Array, "n"],
    length: Int[Array, "n"],
) -> Cache:
    """Copies prompts into slots, between two commits.

    Args:
      cache: with nothing recent in it.
      prompts: of `prefill`.
      slot: where each goes; one past the last slot: nowhere.
      line, start: where each stands.
      length: its tokens.
    """
    columns = min(cache.columns, prompts.k[0].shape[1])
    column = start[:, None] + jnp.arange(columns)[None]

    def copied(into: Array, order: tuple[int, ...], of: Array) -> Array:
        new = of.at[line[:, None], column].get(mode="clip").transpose(order)
        return into.at[_at(order, slot, slice(columns))].set(new, mode="drop")

    lengths = cache.length.at[slot].set(length, mode="drop")
    return _mapped(copied, cache, prompts).replace(length=lengths)


def step(
    config: ModelConfig, weights: Any, token: Int[Array, "B"], cache: Cache
) -> tuple[Float[Array, "B D"], Cache]:
    """Feeds one token to every slot; returns the final-normed states and the longer cache."""
    rope = rope_of(config, (cache.length + cache.written)[:, None])
    x = embedded(config, weights, token[:, None])
    recent = []
    for layer, block in enumerate(weights["blocks"]):
        mix = functools.partial(_read, cache=cache, layer=layer)
        x, keys_values = run_block(config, block, x, rope=rope, mix=mix)
        recent.append(keys_values)
    recent_k, recent_v = zip(*recent, strict=True)
    cache = cache.replace(recent_k=recent_k, recent_v=recent_v, written=cache.written + 1)
    return final_norm(config, weights, x)[:, 0], cache


def commit(cache: Cache) -> Cache:
    """Moves what is recent behind what every slot holds; what does not fit is dropped."""
    column = jnp.arange(cache.recent_k[0].shape[cache.form.k.index(1)])[None]
    # what is not written goes past the end, every column to a place of its own
    place = cache.length[:, None] + column + jnp.where(column < cache.written, 0, cache.columns)
    row = jnp.arange(cache.length.shape[0])[:, None]

    def moved(into: Array, order: tuple[int, ...], recent: Array) -> Array:
        new = recent.transpose([order.index(axis) for axis in range(4)])
        return into.at[_at(order, row, place)].set(new, mode="drop", unique_indices=True)

    return _mapped(moved, cache, (cache.recent_k, cache.recent_v)).replace(
        length=jnp.minimum(cache.length + cache.written, cache.columns),
        written=jnp.zeros_like(cache.written),
    )


# ------------------------------------------------------------------- one token's attention


def _read(
    q: Float[Array, "B 1 h d"], k: Array, v: Array, *, cache: Cache, layer: int
) -> tuple[Array, tuple[Array, Array]]:
    """Attention of the new tokens over what their slots hold, and the recent columns with them."""
    recent_k, recent_v = (
        jax.lax.dynamic_update_slice_in_dim(
            into[layer], new.transpose(order), cache.written, order.index(1)
        )
        for into, new, order in zip(
            (cache.recent_k, cache.recent_v), (k, v), cache.form, strict=True
        )
    )
    over = _over_kernel if cache.form == KERNEL else _over_products
    old = over(q, cache.k[layer], cache.v[layer], cache.length)
    new = over(q, recent_k, recent_v, jnp.full_like(cache.length, cache.written + 1))
    return _merged(old, new).astype(q.dtype), (recent_k, recent_v)


class _Part(NamedTuple):
    """Attention over some columns."""

    y: Float[Array, "B 1 h d"]
    log_sum: Float[Array, "B 1 h"]  # logarithm of the sum of exp(score), float32


def _over_kernel(q: Array, k: Array, v: Array, length: Array) -> _Part:
    """Over the first `length` columns of every slot; of a slot without any, anything."""
    return on_each_device(_cudnn, (q, k, v), jnp.maximum(length, 1))


def _cudnn(q: Array, k: Array, v: Array, length: Array) -> _Part:
    """cuDNN's; the public function would round the logarithms to bfloat16, too coarse to merge."""
    cudnn = library()
    y, log_sum = cudnn.dot_product_attention(
        q,
        k,
        v,
        q_seqlen=jnp.ones_like(length),
        kv_seqlen=length,
        scale=q.shape[-1] ** -0.5,
        mask_type=cudnn.MaskType.PADDING,
        return_residual=True,
    )
    return _Part(y, log_sum.swapaxes(1, 2))


def _over_products(q: Array, k: Array, v: Array, length: Array) -> _Part:
    """Written out; a slot with nothing to see adds nothing to a sum of parts."""
    n, _, h, d = q.shape
    grouped = q.reshape(n, k.shape[1], -1, d)
    scores = jnp.einsum("ngrd,ngdl->ngrl", grouped, k, preferred_element_type=jnp.float32)
    seen = jnp.arange(k.shape[3])[None] < length[:, None]
    scores = jnp.where(seen[:, None, None], scores * d**-0.5, -1e30)
    top = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    y = jnp.einsum(
        "ngrl,ngld->ngrd", (weights / total).astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return _Part(y.reshape(n, 1, h, d), (top + jnp.log(total)).reshape(n, 1, h))


def _merged(a: _Part, b: _Part) -> Array:
    """Attention over the columns of both."""
    share = jax.nn.sigmoid(a.log_sum - b.log_sum)[..., None]
    return share * a.y.astype(jnp.float32) + (1 - share) * b.y.astype(jnp.float32)
