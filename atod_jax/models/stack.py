"""All layers of a decoder: written out one by one, or scanned with less to keep for the gradient.

All but the last are stacked along a leading axis. The last one is kept apart because only the
columns that predict something need its output: it computes keys and values for every column, the
rest for these alone. That is exact, and nearly halves the cost of a two-layer model.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from atod_jax.models.attention import Turns, attend
from atod_jax.models.block import Mix, ModelConfig, kernel_of_config, run_block
from atod_jax.models.layers import Rope


def through(
    config: ModelConfig, params: Any, x: Array, *, rope: Rope, turns: Turns, pick: Array | None
) -> Array:
    """The picked columns after all layers, with what `config.remat` says for the gradient.

    Args:
      params: of the model, or what `serving.serve` makes of them.
      x: the embedded lines.
      rope: of their columns.
      turns: of the lines.
      pick: the columns wanted; None: all.
    """
    if config.remat == "none" or "blocks" in params:
        return read(config, blocks_of(params), x, rope=rope, turns=turns, pick=pick)[0]
    if "layers" in params:
        several = _recomputed if config.remat == "full" else _recomputed_but_dots
        x = several(config, params["layers"], x, rope, turns)

    def end(x: Array, block: Any, rope: Rope, turns: Turns, pick: Array | None) -> Array:
        return _last(config, block, x, rope=rope, turns=turns, pick=pick)[0]

    if config.remat == "full":  # the head's blocks are large, and come in between
        end = jax.checkpoint(end)
    return end(x, params["last"], rope, turns, pick)


def read(
    config: ModelConfig,
    blocks: Any,
    x: Array,
    *,
    rope: Rope,
    turns: Turns,
    pick: Array | None,
) -> tuple[Array, list[tuple[Array, Array]]]:
    """`through`, layer by layer, and the keys and values of each.

    A scan would copy what the gradient needs of a layer into an array of all, and back.
    """
    kept = []
    for block in blocks[:-1]:
        x, keys_values = run_block(config, block, x, rope=rope, mix=_mix(turns))
        kept.append(keys_values)
    x, keys_values = _last(config, blocks[-1], x, rope=rope, turns=turns, pick=pick)
    return x, [*kept, keys_values]


def blocks_of(params: Any) -> Any:
    """One tree a layer; the gradient of a stack is one concatenation."""
    if "blocks" in params:
        return params["blocks"]
    if "layers" not in params:
        return (params["last"],)
    layers = params["layers"]
    count = jax.tree.leaves(layers)[0].shape[0]
    pieces = jax.tree.map(lambda x: [p[0] for p in jnp.split(x, count)], layers)
    outer, inner = jax.tree.structure(layers), jax.tree.structure([0] * count)
    return (*jax.tree.transpose(outer, inner, pieces), params["last"])


def _mix(turns: Turns, pick: Array | None = None) -> Mix:
    """Attention inside the turns; it keeps the keys and values."""
    return lambda q, k, v: (attend(q, k, v, turns=turns, pick=pick), (k, v))


def _last(
    config: ModelConfig, block: Any, x: Array, *, rope: Rope, turns: Turns, pick: Array | None
) -> tuple[Array, Any]:
    """The last layer; where scores are written out, the queries too are of the picked columns."""
    ask = pick if kernel_of_config(config) == "written" else None
    return run_block(config, block, x, rope=rope, mix=_mix(turns, pick), pick=pick, ask=ask)


# ------------------------------------------------------------------- scanned


def _recomputed_but_dots(
    config: ModelConfig, layers: Any, x: Array, rope: Rope, turns: Turns
) -> Array:
    def layer(x: Array, block: Any) -> tuple[Array, None]:
        return run_block(config, block, x, rope=rope, mix=_mix(turns))[0], None

    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    layer = jax.checkpoint(layer, prevent_cse=False, policy=policy)
    return jax.lax.scan(layer, x, layers)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recomputed(config: ModelConfig, layers: Any, x: Array, rope: Rope, turns: Turns) -> Array:
    """Stacked layers, of which only the inputs are kept for the backward pass.

    `jax.checkpoint` would do the same but for the gradients of a layer: they are kept in the
    compute type, as the matrix products give them, until they join the parameters'.
    """
    return _keep_inputs(config, layers, x, rope, turns)[0]


def _keep_inputs(config: ModelConfig, layers: Any, x: Array, rope: Rope, turns: Turns) -> Any:
    def layer(x: Array, block: Any) -> tuple[Array, Array]:
        return run_block(config, block, x, rope=rope, mix=_mix(turns))[0], x

    y, inputs = jax.lax.scan(layer, x, layers)
    return y, (layers, inputs, rope, turns)


def _recompute(config: ModelConfig, kept: Any, change: Array) -> Any:
    layers, inputs, rope, turns = kept

    def layer(change: Array, of: tuple[Any, Array]) -> tuple[Array, Any]:
        block, x = of
        _, pull = jax.vjp(
            lambda block, x: run_block(config, block, x, rope=rope, mix=_mix(turns))[0],
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
