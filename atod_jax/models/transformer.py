"""The decoder: one Flax Linen block, assembled by plain functions over a plain parameter dict.

The block is that of Qwen: grouped-query attention with rotary positions, a gated MLP or a mixture
of them, RMSNorm before both; what a family adds to it (a norm on every query and key head, biases,
experts) is a field of the config. All layers but the last are stacked along a leading axis and run
by one scan. The last one is kept apart because only the columns that predict something need its
output: it computes keys and values for every column, the rest for these alone. That is exact, and
nearly halves the cost of a two-layer model.

Linen ends here; the rest of the package sees functions.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from atod_jax.models.attention import Turns, attend, columns_of, kernel_for, turns_of
from atod_jax.models.layers import Linear, Mlp, RMSNorm, Rope, Rotary, rope_angles
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


# ------------------------------------------------------------------- the block


Mix = Callable[[Array, Array, Array], tuple[Array, Any]]  # queries, keys, values -> (y, kept)


class Attention(nn.Module):
    """Grouped-query attention; `mix` says what a column sees, and what is kept of it."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array, rope: Rope, mix: Mix, *, ask: Array | None) -> tuple[Array, Any]:
        c = self.config
        heads, shared = c.num_heads, c.num_kv_heads
        linear = functools.partial(Linear, bias=c.qkv_bias)
        if self.has_variable("params", "qkv"):  # see `serving.serve`
            qkv = linear((heads + 2 * shared, c.head_dim), name="qkv")(x)
            q, k, v = jnp.split(qkv, (heads, heads + shared), axis=2)
            q = columns_of(q, ask)
        else:
            q = linear((heads, c.head_dim), name="q")(columns_of(x, ask))
            k = linear((shared, c.head_dim), name="k")(x)
            v = linear((shared, c.head_dim), name="v")(x)
        cos, sin = rope
        q = Rotary(c.qk_norm, c.rms_eps, name="q_norm")(
            q, (columns_of(cos, ask), columns_of(sin, ask))
        )
        k = Rotary(c.qk_norm, c.rms_eps, name="k_norm")(k, rope)
        y, kept = mix(q, k, v)
        return Linear((c.hidden_size,), inputs=2, name="o")(y), kept


class Block(nn.Module):
    """One decoder layer; returns its output at the picked columns, and what `mix` keeps.

    `ask`: the columns whose queries `mix` wants; None: all.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: Array, rope: Rope, mix: Mix, *, pick: Array | None = None, ask: Array | None = None
    ) -> tuple[Array, Any]:
        c = self.config
        y = RMSNorm(c.rms_eps, name="attn_norm")(x)
        y, kept = Attention(c, name="attn")(y, rope, mix, ask=ask)
        x = columns_of(x, pick) + y
        y = RMSNorm(c.rms_eps, name="mlp_norm")(x)
        return x + _mlp(c)(y), kept


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
    angles = jnp.zeros((1, 1, config.head_dim))
    dummy = (jnp.zeros((1, 1, config.hidden_size)), (angles, angles), lambda q, k, v: (q, None))

    def block(k: Array) -> Any:
        return Block(config).init(k, *dummy)["params"]

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


def hidden_states(
    config: ModelConfig,
    params: Any,
    tokens: Int[Array, "L W"],
    lengths: Int[Array, "L M"],
    *,
    pick: Int[Array, "L A"] | None = None,
) -> Float[Array, "L A D"]:
    """Final-normed hidden states of some columns, in the compute type.

    A line holds several turns; column j sees the columns of its turn up to j, and positions count
    from the turn's beginning. So what a turn gives depends on no other turn and on no padding, and
    what a column behind the last turn gives has no meaning (but is finite).

    Args:
      tokens: ids in [0, V), the turns of a line one after another. An id out of range gives NaN.
      lengths: columns of each turn; 0 where there is none.
      pick: columns whose states are wanted; None: all.
    """
    turns = turns_of(lengths, tokens.shape[1])
    x = embedded(config, params, tokens)
    if tokens.shape[1] > 1:
        x = split_rows(x)
    rope = rope_of(config, turns.position)
    x = _all_but_last(config, params, x, rope, turns)

    def end(x: Array, block: Any, rope: Rope, turns: Turns, pick: Array | None) -> Array:
        mix = mix_of(turns, pick)
        return run_block(config, block, x, rope=rope, mix=mix, **last(config, pick))[0]

    if config.remat == "full":  # the head's blocks are large, and come in between
        end = jax.checkpoint(end)
    return final_norm(config, params, end(x, params["last"], rope, turns, pick))


def embedded(config: ModelConfig, params: Any, tokens: Array) -> Array:
    """The rows of the embedding table in the compute type."""
    table = params["embed"]["embedding"]
    return jnp.take(table, tokens, axis=0, mode="fill").astype(config.dtype)


def rope_of(config: ModelConfig, positions: Int[Array, "n l"]) -> Rope:
    """The rotations of the model at these positions."""
    return rope_angles(positions, theta=config.rope_theta, width=config.head_dim)


def final_norm(config: ModelConfig, params: Any, x: Array) -> Array:
    """What the head reads."""
    normed: Any = RMSNorm(config.rms_eps).apply({"params": params["norm"]}, x)
    return normed


def mix_of(turns: Turns, pick: Array | None = None) -> Mix:
    """Attention inside the turns; it keeps the keys and values."""
    return lambda q, k, v: (attend(q, k, v, turns=turns, pick=pick), (k, v))


def last(config: ModelConfig, pick: Array | None) -> dict[str, Array | None]:
    """What the last block computes, of which only the picked columns are wanted: where scores are
    written out, the queries of these alone."""
    return {"pick": pick, "ask": pick if kernel_of_config(config) == "written" else None}


def kernel_of_config(config: ModelConfig) -> str:
    """What computes the attention of a model here, see `attention.kernel_for`."""
    return kernel_for(jnp.dtype(config.dtype), config.head_dim)


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


def run_block(
    config: ModelConfig,
    params: Any,
    x: Array,
    *,
    rope: Rope,
    mix: Mix,
    pick: Array | None = None,
    ask: Array | None = None,
) -> tuple[Array, Any]:
    """One block, see `Block`."""
    block: Any = Block(config)
    return block.apply({"params": params}, x, rope, mix, pick=pick, ask=ask)


def _all_but_last(config: ModelConfig, params: Any, x: Array, rope: Rope, turns: Turns) -> Array:
    """All layers but the last.

    Where nothing is computed again they are written out one by one: a scan would copy what each of
    them saves into an array of all, and back.
    """
    if config.num_layers == 1:
        return x
    if config.remat == "full":
        return _recomputed(config, params["layers"], x, rope, turns)

    def layer(x: Array, block: Any) -> tuple[Array, None]:
        return run_block(config, block, x, rope=rope, mix=mix_of(turns))[0], None

    if config.remat == "none":
        for block in unstacked(params["layers"], config.num_layers - 1):
            x, _ = layer(x, block)
        return x
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    layer = jax.checkpoint(layer, prevent_cse=False, policy=policy)
    return jax.lax.scan(layer, x, params["layers"])[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recomputed(config: ModelConfig, layers: Any, x: Array, rope: Rope, turns: Turns) -> Array:
    """Stacked layers, of which only the inputs are kept for the backward pass.

    `jax.checkpoint` would do the same but for the gradients of a layer: they are kept in the
    compute type, as the matrix products give them, until they join the parameters'.
    """
    return _keep_inputs(config, layers, x, rope, turns)[0]


def _keep_inputs(config: ModelConfig, layers: Any, x: Array, rope: Rope, turns: Turns) -> Any:
    def layer(x: Array, block: Any) -> tuple[Array, Array]:
        return run_block(config, block, x, rope=rope, mix=mix_of(turns))[0], x

    y, inputs = jax.lax.scan(layer, x, layers)
    return y, (layers, inputs, rope, turns)


def _recompute(config: ModelConfig, kept: Any, change: Array) -> Any:
    layers, inputs, rope, turns = kept

    def layer(change: Array, of: tuple[Any, Array]) -> tuple[Array, Any]:
        block, x = of
        _, pull = jax.vjp(
            lambda block, x: run_block(config, block, x, rope=rope, mix=mix_of(turns))[0],
            in_compute_type(config, block),
            x,
        )
        of_block, of_x = pull(change)
        return of_x, of_block

    change, grads = jax.lax.scan(layer, change, (layers, inputs), reverse=True)
    return jax.tree.map(lambda g, w: g.astype(w.dtype), grads, layers), change, None, None


_recomputed.defvjp(_keep_inputs, _recompute)


def in_compute_type(config: ModelConfig, params: Any) -> Any:
    """The matrices as the products read them; router, norms and scales are never rounded."""

    def cast(path: Any, x: Array) -> Array:
        keep = {getattr(key, "key", "") for key in path} & {"router", "scale"}
        return x if keep or not jnp.issubdtype(x.dtype, jnp.floating) else x.astype(config.dtype)

    return jax.tree_util.tree_map_with_path(cast, params)


def unstacked(layers: Any, count: int) -> list[Any]:
    """One tree a layer; the gradient of that is one concatenation."""
    pieces = jax.tree.map(lambda x: [p[0] for p in jnp.split(x, count)], layers)
    outer, inner = jax.tree.structure(layers), jax.tree.structure([0] * count)
    return jax.tree.transpose(outer, inner, pieces)
