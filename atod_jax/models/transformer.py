"""The decoder as plain functions over a plain parameter dict: layers between a table and a head."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from atod_jax.models.attention import turns_of
from atod_jax.models.block import Block, ModelConfig
from atod_jax.models.layers import RMSNorm, Rope, rope_angles
from atod_jax.models.rope import rates_of, sharpness
from atod_jax.models.stack import through
from atod_jax.sharding import split_rows


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
      config: of the model.
      params: all of them, or what `serving.serve` makes of them.
      tokens: ids in [0, V), the turns of a line one after another. An id out of range gives NaN.
      lengths: columns of each turn; 0 where there is none.
      pick: columns whose states are wanted; None: all.
    """
    turns = turns_of(lengths, tokens.shape[1])
    x = embedded(config, params, tokens)
    if tokens.shape[1] > 1:
        x = split_rows(x)
    rope = rope_of(config, turns.position)
    x = through(config, params, x, rope=rope, turns=turns, pick=pick)
    return final_norm(config, params, x)


def embedded(config: ModelConfig, params: Any, tokens: Array) -> Array:
    """The rows of the embedding table in the compute type."""
    table = params["embed"]["embedding"]
    return jnp.take(table, tokens, axis=0, mode="fill").astype(config.dtype)


def rope_of(config: ModelConfig, positions: Int[Array, "n l"]) -> Rope:
    """The rotations of the model at these positions."""
    rates = rates_of(config.rope_theta, config.head_dim, config.rope_scaling)
    return rope_angles(positions, rates, sharpness=sharpness(config.rope_scaling))


def final_norm(config: ModelConfig, params: Any, x: Array) -> Array:
    """What the head reads."""
    normed: Any = RMSNorm(config.rms_eps).apply({"params": params["norm"]}, x)
    return normed


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
