"""A mixture of gated MLPs: every token is sent to the few experts its router likes best."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from atod_jax.models.layers import kernel_of
from atod_jax.types import BATCH_AXES, EXPERT_AXIS, TENSOR_AXIS


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
        width, wide = x.shape[-1], self.wide
        router = Kernel((width, self.experts), name="router")(jnp.float32)
        shapes = {"gate": (width, wide), "up": (width, wide), "down": (wide, width)}
        kernels = {
            name: Kernel((self.experts, *shape), name=name)(x.dtype)
            for name, shape in shapes.items()
        }

        def mix(x: Array, router: Array, kernels: dict[str, Array], first: Array | int) -> Array:
            rows = x.reshape(-1, width)
            logits = jnp.matmul(rows.astype(jnp.float32), router, precision="highest")
            weights, chosen = route(logits, self.per_token, normalize=self.normalize)
            return mixture(rows, weights, chosen - first, kernels=kernels).reshape(x.shape)

        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or x.shape[0] % math.prod(mesh.shape[axis] for axis in BATCH_AXES):
            return mix(x, router, kernels, 0).astype(x.dtype)
        return over_mesh(mix)(x, router, kernels).astype(x.dtype)


class Kernel(nn.Module):
    """A bare matrix, or one per expert."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, dtype: Any) -> Array:
        return kernel_of(self, self.shape, dtype)


def over_mesh(mix: Callable[..., Array]) -> Callable[..., Array]:
    """`mix` with every device at its own rows and experts, and the outputs summed.

    Left to itself, the compiler sorts the tokens of all devices together: every one of them would
    then compute the rows of all.
    """

    def local(x: Array, router: Array, kernels: dict[str, Array]) -> Array:
        first = jax.lax.axis_index(EXPERT_AXIS) * kernels["gate"].shape[0]
        return jax.lax.psum(mix(x, router, kernels, first), (EXPERT_AXIS, TENSOR_AXIS))

    into = PartitionSpec(EXPERT_AXIS, None, TENSOR_AXIS)
    out_of = PartitionSpec(EXPERT_AXIS, TENSOR_AXIS, None)
    kernels = {"gate": into, "up": into, "down": out_of}
    rows = PartitionSpec(BATCH_AXES)
    # With check_vma the gradient of x comes out wrong once experts are split (jax 0.10.2).
    return jax.shard_map(
        local, in_specs=(rows, PartitionSpec(), kernels), out_specs=rows, check_vma=False
    )


def mixture(
    x: Float[Array, "T D"],
    weights: Float[Array, "T k"],
    chosen: Int[Array, "T k"],
    *,
    kernels: dict[str, Float[Array, "E i o"]],
) -> Float[Array, "T D"]:
    """The weighted sum of the chosen experts' outputs, in float32.

    A number outside [0, E) belongs to an expert that is not here and adds nothing.
    """
    tokens, each = chosen.shape
    experts = kernels["gate"].shape[0]
    flat = chosen.reshape(-1)
    flat = jnp.where((flat >= 0) & (flat < experts), flat, experts)
    order = jnp.argsort(flat)  # stable: assignments grouped by expert, those elsewhere last
    sizes = jnp.bincount(flat, length=experts)
    here = (flat[order] < experts)[:, None]

    def grouped(rows: Array, name: str) -> Array:
        # what the product makes of rows in no group is not defined, nor is its gradient
        product = jax.lax.ragged_dot(jnp.where(here, rows, 0), kernels[name], sizes)
        return jnp.where(here, product, 0)

    rows = x[order // each]
    y = grouped(nn.silu(grouped(rows, "gate")) * grouped(rows, "up"), "down")
    y = y[jnp.argsort(order)].reshape(tokens, each, -1)
    return jnp.einsum("tkd,tk->td", y.astype(jnp.float32), weights)
