"""Weights from a Hugging Face folder straight onto the devices of a mesh.

Every process reads the parts its devices hold, one tensor of one layer at a time, so that beside
the parameters themselves hardly more than the largest tensor is ever in memory.
"""

import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from atod_jax.models.block import ModelConfig
from atod_jax.models.families import tensor_map
from atod_jax.models.weights import Box, Weights

SMALL = 2**22  # numbers of a stack that is read at once


def load_sharded(
    folder: str | Path,
    config: ModelConfig,
    shardings: Callable[[Any], Any],
    *,
    dtype: str = "float32",
    apart: bool = False,
) -> dict[str, Any]:
    """The parameters of a checkpoint folder, placed.

    Args:
      folder: with one safetensors file, or several and an index.
      config: as `checkpoint_io.read_config` gives it.
      shardings: tree of arrays or ShapeDtypeStructs -> tree of NamedSharding.
      dtype: of the parameters. "int8": the matrices of the layers as integers, each output channel
        with a float32 scale; everything else bfloat16. For models that are not trained.
      apart: "blocks", a tree for each layer, instead of "layers" and "last": as `serving.serve`
        wants them, which then copies nothing. For models that are not trained.

    Raises:
      FileNotFoundError: a file of the folder is missing.
      ValueError: a file is corrupt, the tensors are not exactly those the config implies, or a
        sharding cuts an axis that is not stored as one.
    """
    weights = Weights(Path(folder), config)
    read_as = "bfloat16" if dtype == "int8" else dtype
    shapes = {k: jax.ShapeDtypeStruct(v, read_as) for k, v in weights.shapes().items()}
    places = shardings(unflatten_dict(shapes))
    flat: dict[tuple[Any, ...], jax.Array] = {}
    for name, like in shapes.items():
        place = functools.reduce(lambda tree, key: tree[key], name, places)
        read, axes = functools.partial(weights.block, name), weights.contracted(name)
        if name[0] != "layers":
            arrays = [(name, _place(read, like, place))]
        elif apart:
            arrays = (
                (("blocks", i, *name[1:]), x) for i, x in enumerate(_layers(read, like, place))
            )
            axes = tuple(axis - 1 for axis in axes)
        else:
            small = math.prod(like.shape) <= SMALL
            arrays = [(name, (_place if small else _assemble)(read, like, place))]
        for key, array in arrays:
            flat[key] = array
            if dtype == "int8" and name[-1] == "kernel" and name[-2] != "router":
                flat |= _as_integers(key, array, axes, shardings)
    tree = unflatten_dict(flat)
    if apart:
        layers = tree.pop("blocks", {})
        tree["blocks"] = (*(layers[i] for i in range(len(layers))), tree.pop("last"))
    return tree


def _place(read: Callable[..., np.ndarray], like: jax.ShapeDtypeStruct, place: Any) -> jax.Array:
    """One array from its shards; each distinct shard is read once."""
    block = functools.cache(lambda box: read(box, like.dtype))

    def callback(index: Any) -> np.ndarray:
        sides = zip(index, like.shape, strict=True)
        return block(tuple(part.indices(n)[:2] for part, n in sides))

    return jax.make_array_from_callback(like.shape, place, callback)


def _layers(
    read: Callable[..., np.ndarray], like: jax.ShapeDtypeStruct, place: Any
) -> Iterator[jax.Array]:
    """The layers of a stacked parameter, one after another."""
    axes = (*place.spec, *[None] * (len(like.shape) - len(place.spec)))
    layer_place = NamedSharding(place.mesh, PartitionSpec(*axes[1:]))
    layer_like = jax.ShapeDtypeStruct(like.shape[1:], like.dtype)
    for i in range(like.shape[0]):

        def read_layer(box: Box, dtype: Any, i: int = i) -> np.ndarray:
            return read(((i, i + 1), *box), dtype)[0]

        yield _place(read_layer, layer_like, layer_place)


def _assemble(read: Callable[..., np.ndarray], like: jax.ShapeDtypeStruct, place: Any) -> jax.Array:
    """A stacked parameter, layer by layer into one device buffer."""
    stack = jax.jit(functools.partial(jnp.zeros, like.shape, like.dtype), out_shardings=place)()
    for i, layer in enumerate(_layers(read, like, place)):
        stack = jax.block_until_ready(_write(stack, layer, jnp.int32(i), place=place))
    return stack


@functools.partial(jax.jit, static_argnames="place", donate_argnames="stack")
def _write(stack: jax.Array, layer: jax.Array, i: jax.Array, *, place: Any) -> jax.Array:
    stack = jax.lax.dynamic_update_index_in_dim(stack, layer, i, axis=0)
    return jax.lax.with_sharding_constraint(stack, place)


def _as_integers(
    name: tuple[Any, ...], kernel: jax.Array, axes: tuple[int, ...], shardings: Callable[[Any], Any]
) -> dict[tuple[Any, ...], jax.Array]:
    """The two parameters that take the place of one kernel."""
    names = (name, (*name[:-1], "scale"))

    def convert(kernel: jax.Array) -> Any:
        return unflatten_dict(dict(zip(names, to_int8(kernel, axes), strict=True)))

    places = shardings(jax.eval_shape(convert, kernel))
    tree = jax.jit(convert, out_shardings=places)(kernel)
    return {key: functools.reduce(lambda node, part: node[part], key, tree) for key in names}


def to_integers(config: ModelConfig, params: Any) -> Any:
    """Parameters as `load_sharded` keeps them with dtype "int8", from bfloat16 ones."""
    flat: dict[Any, Any] = dict(flatten_dict(params))
    for entry in tensor_map(config):
        name = entry.path
        if name[-1] == "kernel" and name[-2] != "router" and flat[name].dtype != jnp.int8:
            axes = tuple(range(len(entry.stack), len(entry.stack) + entry.inputs))
            flat[name], flat[*name[:-1], "scale"] = to_int8(flat[name], axes)
    return unflatten_dict(flat)


def to_int8(kernel: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Integers in [-127, 127] and the float32 scale of each output channel.

    integers * scale differs from `kernel` by at most half a scale, which is 1/254 of the channel's
    largest weight. `axes` are those a product sums over; the scale keeps them with size 1.
    """
    exact = kernel.astype(jnp.float32)
    largest = jnp.max(jnp.abs(exact), axis=axes, keepdims=True)
    scale = jnp.where(largest > 0, largest / 127, 1.0)
    return jnp.round(exact / scale).astype(jnp.int8), scale
