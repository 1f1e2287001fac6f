"""What is told of arrays where they lie: digests, and whether all their numbers are finite.

Digests depend on no sharding, so a state can be read onto other devices and still be compared, to
the bit, with what was written.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_ODD = np.uint32(0x9E3779B1), np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35)


def digests(tree: Any) -> dict[str, str]:
    """Sixteen hexadecimal digits for every array of a tree, by its path.

    The two halves are sums modulo 2^32: of the array's words, which a single flipped bit always
    changes, and of the words mixed with their places, which tells words in another order (the
    mixing is the last step of MurmurHash3).
    """
    names, arrays = _named(tree)
    with jax.transfer_guard("allow"):
        sums = jax.device_get(_sums(arrays))
    return {name: f"{a:08x}{b:08x}" for name, (a, b) in zip(names, sums, strict=True)}


def not_finite(tree: Any, *, largest: float = math.inf) -> list[str]:
    """The paths of the arrays of a tree that hold a NaN, an infinity or more than `largest`."""
    names, arrays = _named(tree)
    with jax.transfer_guard("allow"):
        finite = jax.device_get(_finite(arrays, largest))
    return [name for name, fine in zip(names, finite, strict=True) if not fine]


def _named(tree: Any) -> tuple[list[str], list[jax.Array]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    return names, [leaf for _, leaf in leaves]


@jax.jit
def _finite(arrays: list[jax.Array], largest: jax.Array) -> list[jax.Array]:
    return [(jnp.isfinite(x) & (jnp.abs(x) <= largest)).all() for x in arrays]


@jax.jit
def _sums(arrays: list[jax.Array]) -> list[tuple[jax.Array, jax.Array]]:
    return [_sums_of(array) for array in arrays]


def _sums_of(array: jax.Array) -> tuple[jax.Array, jax.Array]:
    words = _words(array)
    place = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(words.shape):
        place = place * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    mixed = words ^ (place * _ODD[0])
    for shift, odd in ((16, _ODD[1]), (13, _ODD[2])):
        mixed = (mixed ^ (mixed >> np.uint32(shift))) * odd
    mixed ^= mixed >> np.uint32(16)
    return jnp.sum(words, dtype=jnp.uint32), jnp.sum(mixed, dtype=jnp.uint32)


def _words(array: jax.Array) -> jax.Array:
    """The bits of an array as u32; those of eight bytes get a last axis of two."""
    if array.dtype == bool:
        return array.astype(jnp.uint32)
    bits = jnp.dtype(f"uint{8 * min(4, array.dtype.itemsize)}")
    return jax.lax.bitcast_convert_type(array, bits).astype(jnp.uint32)
