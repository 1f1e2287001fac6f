"""One layer of a decoder, and the config that says what it is.

The block is that of Llama and Qwen: grouped-query attention with rotary positions, a gated MLP or a
mixture of them, RMSNorm before both; what a family adds to it (a norm on every query and key head,
biases, experts) is a field of the config. Linen ends here: above are functions of plain parameter
dicts.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from atod_jax.models.attention import columns_of, kernel_for
from atod_jax.models.layers import Linear, Mlp, RMSNorm, Rope, Rotary
from atod_jax.models.moe import Moe
from atod_jax.models.rope import Scaling

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
    rope_scaling: Scaling | None = None  # for contexts longer than the first training's
    num_experts: int = 0  # per layer, each of intermediate_size; 0 = one dense MLP
    experts_per_token: int = 0
    normalize_top_k: bool = True  # the weights of a token's experts sum to one
    dtype: str = "float32"  # of the matrix products; norms, softmax and rotations stay float32
    remat: str = "none"  # what the backward pass recomputes per layer: nothing, all, all but dots

    def __post_init__(self):
        if self.num_layers < 1:
            raise ValueError(f"num_layers={self.num_layers}: a decoder needs at least 1")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is no multiple of num_kv_heads={self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim}: rotary positions need an even number")
        if self.num_experts and not 1 <= self.experts_per_token <= self.num_experts:
            raise ValueError(
                f"experts_per_token={self.experts_per_token}: choose 1 to num_experts="
                f"{self.num_experts}"
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


def kernel_of_config(config: ModelConfig) -> str:
    """What computes the attention of a model here, see `attention.kernel_for`."""
    return kernel_for(jnp.dtype(config.dtype), config.head_dim)
