"""The decoder: one Flax Linen block, assembled by plain functions over a plain parameter dict.

The block is that of Qwen: grouped-query attention with rotary positions, a gated MLP or a mixture
of them, RMSNorm before both; what a family adds to it (a norm on every query and key head, biases,
experts) is a field of the config. All layers but the last are stacked along a leading axis and run
by one scan. The last one is kept apart because only the `tail` columns that predict something need
its output: it computes keys and values for every column, everything else for the tail alone. That
is exact, and nearly halves the cost of a two-layer model.

Linen ends here; the rest of the package sees functions.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from atod_jax.models.layers import Linear, Mlp, RMSNorm, attend, rotate
from atod_jax.models.moe import Moe
from atod_jax.sharding import split_rows

REMAT = ("none", "full", "dots")
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The architecture, and how it is computed. Hashable, so it can be static under jit."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rope_theta: float
    rms_eps: float
    tie_embeddings: bool
    qk_norm: bool = True  # RMSNorm over every query and key head
    qkv_bias: bool = False  # on queries, keys and values
    num_experts: int = 0  # per layer, each of intermediate_size; 0 = one dense MLP
    experts_per_token: int = 0
    normalize_top_k: bool = True  # the weights of a token's experts sum to one
    dtype: str = "float32"  # of the matrix products; norms, softmax and rotations stay float32
    remat: str = "none"  # what the backward pass recomputes per layer: nothing, all, all but dots

    def __post_init__(self):
        if self.num_layers < 1:
            raise ValueError(f"num_layers={self.num_layers}: a decoder needs at least 1")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads={self.num_heads} not a multiple of {self.num_kv_heads=}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim}: rotary positions need an even number")
        if self.num_experts and not 1 <= self.experts_per_token <= self.num_experts:
            raise ValueError(
                f"experts_per_token={self.experts_per_token}: choose 1 to {self.num_experts=}"
            )
        if self.remat not in REMAT:
            raise ValueError(f"remat={self.remat!r}: choose one of {REMAT}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r}: choose one of {DTYPES}")


class Cache(struct.PyTreeNode, kw_only=True):
    """Keys and values of the columns seen so far.

    All rows write at the same column: prompts are padded on the left.
    """

    k: Float[Array, "layers B S kv hd"]
    v: Float[Array, "layers B S kv hd"]
    valid: Bool[Array, "B S"]  # False where the column is padding or not yet written
    index: Int[Array, ""]  # the next column to write


# ------------------------------------------------------------------- the block


class Attention(nn.Module):
    """Grouped-query attention of the last `tail` columns over all columns."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x, rope, mask, *, tail: int, cache: Cache | None, layer: Array | int):
        c = self.config
        q = Linear((c.num_heads, c.head_dim), bias=c.qkv_bias, name="q")(x[:, -tail:])
        k = Linear((c.num_kv_heads, c.head_dim), bias=c.qkv_bias, name="k")(x)
        v = Linear((c.num_kv_heads, c.head_dim), bias=c.qkv_bias, name="v")(x)
        if c.qk_norm:
            q, k = RMSNorm(c.rms_eps, name="q_norm")(q), RMSNorm(c.rms_eps, name="k_norm")(k)
        q, k = rotate(q, tuple(t[:, -tail:] for t in rope)), rotate(k, rope)
        if cache is not None:
            cache, k, v = _through(cache, layer, k, v)
        y = attend(q, k, v, mask=mask[:, -tail:])
        return Linear((c.hidden_size,), inputs=2, name="o")(y), cache


def _through(cache: Cache, layer: Array | int, k: Array, v: Array) -> tuple[Cache, Array, Array]:
    """Writes the new columns into the cache and reads all columns of this layer back."""
    start = (layer, 0, cache.index, 0, 0)
    cache = cache.replace(
        k=jax.lax.dynamic_update_slice(cache.k, k[None], start),
        v=jax.lax.dynamic_update_slice(cache.v, v[None], start),
    )
    read = (jax.lax.dynamic_index_in_dim(t, layer, keepdims=False) for t in (cache.k, cache.v))
    return (cache, *read)


class Block(nn.Module):
    """One decoder layer; returns its output at the last `tail` columns, and the cache."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x, rope, mask, *, tail: int, cache: Cache | None = None, layer: Array | int = 0
    ):
        c = self.config
        y = RMSNorm(c.rms_eps, name="attn_norm")(x)
        y, cache = Attention(c, name="attn")(y, rope, mask, tail=tail, cache=cache, layer=layer)
        x = x[:, -tail:] + y
        y = RMSNorm(c.rms_eps, name="mlp_norm")(x)
        return x + _mlp(c)(y), cache


def _mlp(c: ModelConfig) -> nn.Module:
    if not c.num_experts:
        return Mlp(c.intermediate_size, name="mlp")
    return Moe(
        c.num_experts, c.experts_per_token, c.intermediate_size, c.normalize_top_k, name="moe"
    )


# ------------------------------------------------------------------- the functions


def init_params(config: ModelConfig, key: Array) -> dict[str, Any]:
    """Random float32 parameters: normal(0.02) matrices, unit norms.

    Returns: {"embed": {"embedding" [V, D]}, "layers": block stacked to [layers - 1, ...] (absent
    with one layer), "last": block, "norm": {"scale" [D]}, "head": {"embedding" [V, D]} if untied}.
    """
    k_embed, k_blocks, k_head = jax.random.split(key, 3)
    half = jnp.zeros((1, 1, config.head_dim // 2))
    dummy = (jnp.zeros((1, 1, config.hidden_size)), (half, half), jnp.ones((1, 1, 1), bool))

    def block(k: Array) -> Any:
        return Block(config).init(k, *dummy, tail=1)["params"]

    def table(k: Array) -> dict[str, Array]:
        shape = (config.vocab_size, config.hidden_size)
        return {"embedding": 0.02 * jax.random.normal(k, shape, jnp.float32)}

    blocks = jax.vmap(block)(jax.random.split(k_blocks, config.num_layers))
    params = {"embed": table(k_embed), "last": jax.tree.map(lambda x: x[-1], blocks)}
    params["norm"] = {"scale": jnp.ones((config.hidden_size,), jnp.float32)}
    if config.num_layers > 1:
        params["layers"] = jax.tree.map(lambda x: x[:-1], blocks)
    if not config.tie_embeddings:
        params["head"] = table(k_head)
    return params


def empty_cache(config: ModelConfig, rows: int, columns: int) -> Cache:
    """A cache of `columns` unwritten columns in the compute type."""
    shape = (config.num_layers, rows, columns, config.num_kv_heads, config.head_dim)
    return Cache(
        k=jnp.zeros(shape, config.dtype),
        v=jnp.zeros(shape, config.dtype),
        valid=jnp.zeros((rows, columns), bool),
        index=jnp.zeros((), jnp.int32),
    )


def grow_cache(cache: Cache, columns: int) -> Cache:
    """The same cache, `columns` unwritten columns longer."""
    padding = ((0, 0), (0, 0), (0, columns), (0, 0), (0, 0))
    return cache.replace(
        k=jnp.pad(cache.k, padding),
        v=jnp.pad(cache.v, padding),
        valid=jnp.pad(cache.valid, padding[1:3]),
    )


def hidden_states(
    config: ModelConfig,
    params: Any,
    tokens: Int[Array, "n l"],
    valid: Bool[Array, "n l"],
    *,
    tail: int,
    cache: Cache | None = None,
) -> tuple[Float[Array, "n tail D"], Cache | None]:
    """Final-normed hidden states of the last `tail` columns, in the compute type.

    Column j attends to the valid columns up to j. Positions count valid columns only, so padding
    on the left changes nothing; what an invalid column returns has no meaning (but is finite).

    Args:
      tokens: ids in [0, V); any id where not valid. An id out of range gives NaN.
      valid: False on padding.
      tail: columns to return, 1 <= tail <= l.
      cache: earlier columns; the given ones are written behind them and a new cache returned.
        None: there are no earlier columns and nothing is kept (training, scoring).

    Raises:
      ValueError: `tail` outside 1..l.
    """
    columns = tokens.shape[1]
    if not 1 <= tail <= columns:
        raise ValueError(f"tail={tail}: ask for 1 to {columns} of the {columns} columns given")
    seen, index = _merge_valid(valid, cache)
    x = jnp.take(params["embed"]["embedding"], tokens, axis=0, mode="fill").astype(config.dtype)
    if columns > 1:  # moving the one column of a decoding step is cheaper than moving weights
        x = split_rows(x)
    before = jnp.sum(seen, axis=1, keepdims=True) - jnp.sum(valid, axis=1, keepdims=True)
    rope = rope_angles(config, before + jnp.cumsum(valid, axis=1) - 1)
    causal = jnp.arange(seen.shape[1])[None, :] <= index + jnp.arange(columns)[:, None]
    view = (rope, causal[None] & seen[:, None, :])
    if cache is None:
        x = _scan(config, params, x, view)
        x, _ = _run(config, params["last"], x, view, tail=tail)
    else:
        x, cache = _scan_cached(config, params, x, view, cache=cache, tail=tail)
        cache = cache.replace(valid=seen, index=index + columns)
    normed: Any = RMSNorm(config.rms_eps).apply({"params": params["norm"]}, x)
    return normed, cache


def rope_angles(config: ModelConfig, positions: Int[Array, "n l"]) -> tuple[Array, Array]:
    """cos and sin of position * theta^(-2i/head_dim), each f32[n, l, head_dim/2]."""
    exponent = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
    rate = 1.0 / (config.rope_theta**exponent)
    angle = jnp.maximum(positions, 0).astype(jnp.float32)[:, :, None] * rate[None, None, :]
    return jnp.cos(angle), jnp.sin(angle)


def head_matrix(config: ModelConfig, params: Any) -> Float[Array, "V D"]:
    """The output embedding in the compute type; logits are hidden @ head.T."""
    name = "embed" if config.tie_embeddings else "head"
    return params[name]["embedding"].astype(config.dtype)


def resize_vocabulary(
    params: dict[str, Any], rows: int, shardings: Callable[[Any], Any]
) -> dict[str, Any]:
    """Embedding and head cut to their first `rows` rows, or filled up with zeros.

    The rows that come or go must belong to no id: tables are often padded to a round size.
    """

    def resized(table: Array) -> Array:
        missing = max(0, rows - table.shape[0])
        return jnp.pad(table[:rows], ((0, missing), (0, 0)))

    def tables(params: Any) -> Any:
        return {k: {"embedding": resized(v["embedding"])} for k, v in params.items()}

    old = {name: params[name] for name in ("embed", "head") if name in params}
    places = shardings(jax.eval_shape(tables, old))
    return params | jax.jit(tables, out_shardings=places)(old)


def _merge_valid(valid: Array, cache: Cache | None) -> tuple[Array, Array]:
    """Validity of all columns there are now, and the column where the given ones begin."""
    if cache is None:
        return valid, jnp.zeros((), jnp.int32)
    start = (jnp.zeros((), jnp.int32), cache.index)
    return jax.lax.dynamic_update_slice(cache.valid, valid, start), cache.index


def _run(config: ModelConfig, params: Any, x: Array, view: Any, **where: Any) -> Any:
    """One block; `view` holds the rotations and the mask of all columns."""
    return Block(config).apply({"params": params}, x, *view, **where)


def _scan(config: ModelConfig, params: Any, x: Array, view: Any) -> Array:
    """All layers but the last, without a cache.

    Only these are worth recomputing in the backward pass: the last layer's comes first, so what it
    saved is used at once.
    """
    if config.num_layers == 1:
        return x

    def layer(x: Array, block: Any) -> tuple[Array, None]:
        return _run(config, block, x, view, tail=x.shape[1])[0], None

    if config.remat == "full":
        layer = jax.checkpoint(layer, prevent_cse=False)
    elif config.remat == "dots":
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        layer = jax.checkpoint(layer, prevent_cse=False, policy=policy)
    return jax.lax.scan(layer, x, params["layers"])[0]


def _scan_cached(
    config: ModelConfig, params: Any, x: Array, view: Any, *, cache: Cache, tail: int
) -> tuple[Array, Cache]:
    """All layers; the cache travels in the carry, so that XLA updates it in place."""
    last = config.num_layers - 1

    def layer(carry: tuple[Array, Cache], block: Any) -> tuple[tuple[Array, Cache], None]:
        x, cache = carry
        params, number = block
        return _run(config, params, x, view, tail=x.shape[1], cache=cache, layer=number), None

    if last:
        (x, cache), _ = jax.lax.scan(layer, (x, cache), (params["layers"], jnp.arange(last)))
    return _run(config, params["last"], x, view, tail=tail, cache=cache, layer=last)
