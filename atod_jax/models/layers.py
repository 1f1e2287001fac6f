"""The parts of a layer that know nothing of its config: norm, linear maps, attention, MLP."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

QUERIES = 256  # columns whose attention scores exist at a time
_MASKED = -1e30  # finite, so that a row of padding stays free of nan


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * scale over the last axis (Zhang & Sennrich, 2019), in float32."""

    eps: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return (y * scale.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


def kernel_of(module: nn.Module, shape: tuple[int, ...], dtype: Any) -> Array:
    """The module's matrix in the type of the product; one kept as integers is scaled back.

    A fresh one is float32, normal(0.02).
    """
    kernel = module.param("kernel", nn.initializers.normal(0.02), shape, jnp.float32)
    if not module.has_variable("params", "scale"):
        return kernel.astype(dtype)
    scale = module.get_variable("params", "scale")
    return (kernel.astype(jnp.float32) * scale).astype(dtype)


def low_rank(module: nn.Module, x: Float[Array, "tokens width"]) -> Float[Array, "tokens out"]:
    """What the module's adapter adds, (x A) B: no matrix of the kernel's size, nor its gradient."""
    a, b = (module.get_variable("params", f"lora_{name}").astype(x.dtype) for name in "ab")
    return (x @ a.reshape(-1, a.shape[-1])) @ b.reshape(b.shape[0], -1)


class Linear(nn.Module):
    """A map that contracts the last `inputs` axes of x and appends `features`."""

    features: tuple[int, ...]
    inputs: int = 1
    bias: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (*x.shape[-self.inputs :], *self.features)
        kernel = kernel_of(self, shape, x.dtype)
        # One matrix product over all tokens: with [n, l] kept apart, XLA's CPU backend makes the
        # gradients half as fast.
        rows, width = x.shape[: x.ndim - self.inputs], math.prod(shape[: self.inputs])
        x = x.reshape(-1, width)
        y = x @ kernel.reshape(width, -1)
        if self.has_variable("params", "lora_a"):
            y = y + low_rank(self, x)
        y = y.reshape(*rows, *self.features)
        if not self.bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, self.features, jnp.float32)
        return y + bias.astype(x.dtype).reshape((1,) * len(rows) + self.features)


def rotate(x: Float[Array, "n l h d"], rope: tuple[Array, Array]) -> Float[Array, "n l h d"]:
    """Rotary positions (Su et al., 2021) with the halves of a head as the two coordinates."""
    cos, sin = (t[:, :, None, :] for t in rope)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def attend(
    q: Float[Array, "n t h d"],
    k: Float[Array, "n l kv d"],
    v: Float[Array, "n l kv d"],
    *,
    mask: Bool[Array, "n t l"],
) -> Float[Array, "n t h d"]:
    """softmax(q k^T / sqrt(d)) v with shared key heads; a row with no key to see averages all.

    Scores exist for `QUERIES` columns at a time, and are computed again in the backward pass:
    those of a long prompt are larger than the model.
    """
    t = q.shape[1]
    if t <= QUERIES:
        return _attend(q, k, v, mask)
    q, mask = (jnp.pad(x, [(0, 0), (0, -t % QUERIES)] + [(0, 0)] * (x.ndim - 2)) for x in (q, mask))
    one = jax.checkpoint(lambda block: _attend(block[0], k, v, block[1]), prevent_cse=False)
    return _joined(jax.lax.map(one, (_blocks(q), _blocks(mask))))[:, :t]


def _blocks(x: Array) -> Array:
    """[n, blocks * QUERIES, ...] -> [blocks, n, QUERIES, ...]."""
    return jnp.swapaxes(x.reshape(x.shape[0], -1, QUERIES, *x.shape[2:]), 0, 1)


def _joined(x: Array) -> Array:
    """The inverse of `_blocks`."""
    x = jnp.swapaxes(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def _attend(q: Array, k: Array, v: Array, mask: Array) -> Array:
    """Attention written out: a training step of a tiny model on a CPU is faster than with
    `jax.nn.dot_product_attention`."""
    n, t, h, d = q.shape
    grouped = q.reshape(n, t, k.shape[2], -1, d)
    scores = jnp.einsum("ntgrd,nlgd->ngrtl", grouped, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None], scores * d**-0.5, _MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("ngrtl,nlgd->ntgrd", weights, v).reshape(n, t, h, d)


class Mlp(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer, 2020)."""

    wide: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = nn.silu(Linear((self.wide,), name="gate")(x)) * Linear((self.wide,), name="up")(x)
        return Linear((x.shape[-1],), name="down")(y)
