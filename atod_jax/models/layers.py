"""The parts of a layer that know nothing of its config: norm, linear maps, rotations, MLP."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

Rope = tuple[Array, Array]  # cos and sin, see `rope_angles`


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


class Rotary(nn.Module):
    """Rotary positions (Su et al., 2021) with the halves of a head as the two coordinates, after
    RMSNorm over each head if `norm`.

    Norm and rotation are one formula, whose factor comes last: so a device reads a head twice and
    writes it once, in its own type.
    """

    norm: bool
    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "n l h d"], rope: Rope) -> Float[Array, "n l h d"]:
        cos, sin = (t[:, :, None, :] for t in rope)
        y = x.astype(jnp.float32)
        factor = 1.0
        if self.norm:
            scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
            factor = jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
            y = y * scale.astype(jnp.float32).reshape(1, 1, 1, -1)
        # a reversal fuses with what is around it, a concatenation of halves does not
        other = jnp.flip(y.reshape(*x.shape[:-1], 2, -1), axis=-2).reshape(x.shape)
        return ((y * cos + other * sin) * factor).astype(x.dtype)


def rope_angles(
    positions: Int[Array, "n l"], rates: Float[Array, "half"], *, sharpness: float = 1.0
) -> Rope:
    """cos and sin of position * rate for both halves of a head, times `sharpness`; each
    f32[n, l, width], the sines of the first half negative."""
    angle = positions.astype(jnp.float32)[:, :, None] * rates[None, None, :]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    if sharpness != 1.0:
        cos, sin = sharpness * cos, sharpness * sin
    return jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)


class Mlp(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer, 2020)."""

    wide: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.has_variable("params", "gate_up"):  # see `serving.serve`
            gate, up = jnp.split(Linear((2 * self.wide,), name="gate_up")(x), 2, axis=-1)
        else:
            gate, up = Linear((self.wide,), name="gate")(x), Linear((self.wide,), name="up")(x)
        return Linear((x.shape[-1],), name="down")(nn.silu(gate) * up)
