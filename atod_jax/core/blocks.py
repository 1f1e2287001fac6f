"""How the work of the vocabulary head is cut: tokens into blocks, vocabulary rows into tiles."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

# Bytes of the float32 logits of a block: many keep an accelerator's matrix units busy and add
# seldom to the head's gradient, few stay in the cache of a CPU.
_CPU_BLOCK, _BLOCK = 2**23, 5 * 2**28
_FEWEST_TOKENS = 256
_CPU_TILE = 2048  # vocabulary rows


def block_tokens(rows: int, *, platform: str) -> int:
    """Tokens whose logits exist at a time, for `rows` vocabulary rows on a device of a platform."""
    most = (_CPU_BLOCK if platform == "cpu" else _BLOCK) // (4 * rows)
    return max(_FEWEST_TOKENS, 1 << most.bit_length() >> 1)  # a power of two


def tile_rows(rows: int, *, platform: str) -> int:
    """Vocabulary rows in one product: on a CPU few enough for its cache, if they divide."""
    fitting = range(min(rows, _CPU_TILE), _CPU_TILE // 8, -1) if platform == "cpu" else ()
    return next((tile for tile in fitting if rows % tile == 0), rows)


class Blocks(NamedTuple):
    """The action tokens of a device's rows, gathered into `capacity` positions, in blocks."""

    mask: Bool[Array, "N R"]
    position: Int[Array, "C"] | None  # flat position of each, one past the end where unused
    zero: Any  # NaN after an overflow
    shape: tuple[int, int]  # so many blocks of so many tokens

    @classmethod
    def of(cls, mask: Bool[Array, "N R"], capacity: int | None, *, block: int) -> "Blocks":
        """Of one device. With a capacity of None, or of all positions, nothing is gathered."""
        count = min(capacity or mask.size, mask.size)
        blocks = max(1, -(-count // block))
        size = min(block, 8 * -(-count // (8 * blocks)))  # matrix units like multiples of 8
        if count == mask.size:
            return cls(mask, None, 0.0, (blocks, size))
        position = jnp.flatnonzero(mask, size=count, fill_value=mask.size)
        zero = jnp.where(jnp.sum(mask) > count, jnp.nan, 0.0)
        return cls(mask, position, zero, (blocks, size))

    def cut(self, tree: Any) -> Any:
        """[N, R, ...] -> [blocks, t, ...]; zeros where unused."""

        def one(x: Array) -> Array:
            x = x.reshape(-1, *x.shape[2:])
            if self.position is not None:
                x = x.at[self.position].get(mode="fill", fill_value=0)
            unused = math.prod(self.shape) - x.shape[0]
            x = jnp.pad(x, [(0, unused)] + [(0, 0)] * (x.ndim - 1))
            return x.reshape(*self.shape, *x.shape[1:])

        return jax.tree.map(one, tree)

    def put(self, x: Array) -> Array:
        """[blocks, t, ...] -> [N, R, ...]; zeros off the mask, NaN on it after an overflow."""
        x = x.reshape(-1, *x.shape[2:])
        if self.position is None:
            x = x[: self.mask.size]
        else:
            places = jnp.zeros((self.mask.size, *x.shape[1:]), x.dtype)
            x = places.at[self.position].set(x[: len(self.position)], mode="drop")
        mask = self.mask.reshape(*self.mask.shape, *(1,) * (x.ndim - 1))
        x = x.reshape(*self.mask.shape, *x.shape[1:]) + self.zero
        return jnp.where(mask, x, 0.0).astype(x.dtype)
