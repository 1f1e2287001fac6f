"""A mixture of gated MLPs: every token is sent to the few experts its router likes best."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from atod_jax.models.layers import kernel_of


def route(
    logits: Float[Array, "T E"], experts: int, *, normalize: bool
) -> tuple[Float[Array, "T k"], Int[Array, "T k"]]:
    """The weights and numbers of each token's `experts` likeliest experts.

    The weights are probabilities over all experts, or with `normalize` over the chosen ones. Of
    equally likely experts the lower number is chosen; torch.topk leaves that choice open.
    """
    weights, chosen = jax.lax.top_k(jax.nn.softmax(logits, axis=-1), experts)
    if normalize:
        weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    return weights, chosen


class Moe(nn.Module):
    """sum over a token's experts of weight * down(silu(gate(x)) * up(x)) (Shazeer et al., 2017).

    No token is dropped: tokens are sorted by expert, and each expert multiplies its own run of
    them in one grouped product. The router works in float32 whatever the compute type, since a
    rounded logit would change which expert is asked.
    """

    experts: int
    per_token: int
    wide: int
    normalize: bool

    @nn.compact
    def __call__(self, x: Float[Array, "n t D"]) -> Float[Array, "n t D"]:
        rows, width = x.reshape(-1, x.shape[-1]), x.shape[-1]
        router = Kernel((width, self.experts), name="router")(jnp.float32)
        logits = jnp.matmul(rows.astype(jnp.float32), router, precision=jax.lax.Precision.HIGHEST)
        weights, chosen = route(logits, self.per_token, normalize=self.normalize)
        names = {"gate": (width, self.wide), "up": (width, self.wide), "down": (self.wide, width)}
        kernels = {
            name: Kernel((self.experts, *shape), name=name)(x.dtype)
            for name, shape in names.items()
        }
        return mixture(rows, weights, chosen, kernels).reshape(x.shape)


class Kernel(nn.Module):
    """A bare matrix, or one per expert."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, dtype: Any) -> Array:
        return kernel_of(self, self.shape, dtype)


def mixture(
    x: Float[Array, "T D"],
    weights: Float[Array, "T k"],
    chosen: Int[Array, "T k"],
    kernels: dict[str, Float[Array, "E i o"]],
) -> Float[Array, "T D"]:
    """The weighted sum of the chosen experts' outputs, in the type of x; the sum in float32."""
    tokens, each = chosen.shape
    order = jnp.argsort(chosen.reshape(-1))  # stable: assignments grouped by expert
    sizes = jnp.bincount(chosen.reshape(-1), length=kernels["gate"].shape[0])
    rows = x[order // each]
    gate, up = (jax.lax.ragged_dot(rows, kernels[name], sizes) for name in ("gate", "up"))
    y = jax.lax.ragged_dot(nn.silu(gate) * up, kernels["down"], sizes)
    y = y[jnp.argsort(order)].reshape(tokens, each, -1)
    return jnp.einsum("tkd,tk->td", y.astype(jnp.float32), weights).astype(x.dtype)
