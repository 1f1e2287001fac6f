"""The least that a program has to do: operations of products, and bytes of weights and keys."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from atod_jax.estimate.hardware import Chip
from atod_jax.models import ModelConfig

Lengths = Sequence[tuple[int, int]]  # prompt and action tokens of every turn


class Work(NamedTuple):
    """What no implementation can avoid."""

    flops: float
    bytes: float = 0.0

    def seconds(self, chip: Chip) -> float:
        """At the rates that the chip reaches."""
        return max(self.flops / chip.reached, self.bytes / chip.streamed)

    def times(self, n: float) -> "Work":
        """The same n times."""
        return Work(n * self.flops, n * self.bytes)


def weights(config: ModelConfig, experts: float = 0) -> float:
    """Weights in the layers that a token is multiplied with, or with so many experts a layer."""
    heads = config.num_heads + config.num_kv_heads
    mlp = 3 * config.intermediate_size * (experts or config.experts_per_token or 1)
    return config.num_layers * config.hidden_size * (2 * heads * config.head_dim + mlp)


def attention(config: ModelConfig, length: float) -> float:
    """Operations of the scores and values of a row, half of the pairs masked."""
    return 2 * config.num_layers * config.num_heads * config.head_dim * length**2


def table(config: ModelConfig) -> float:
    """Weights of the output embedding."""
    return config.vocab_size * config.hidden_size


def forward(config: ModelConfig, turns: Lengths) -> Work:
    """All tokens of some turns through the layers, those of actions through the head."""
    tokens, actions = sum(p + a - 1 for p, a in turns), sum(a for _, a in turns)
    pairs = sum(attention(config, p + a - 1) for p, a in turns)
    return Work(2 * (tokens * weights(config) + actions * table(config)) + pairs)


def read(config: ModelConfig, prompts: Sequence[int]) -> Work:
    """Prompts through the layers."""
    pairs = sum(attention(config, p) for p in prompts)
    return Work(2 * sum(prompts) * weights(config) + pairs)


def chosen(config: ModelConfig, tokens: float) -> float:
    """Experts of a layer that so many tokens choose, if all are as likely; 0 without experts."""
    if not config.num_experts:
        return 0
    return config.num_experts * (1 - (1 - config.experts_per_token / config.num_experts) ** tokens)


def step(config: ModelConfig, rows: float, seen: float) -> Work:
    """One token of every row: weights that any of them needs, and keys and values of what was seen,
    read once."""
    used = weights(config) + table(config)
    there = weights(config, chosen(config, rows)) + table(config)
    each = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    pairs = 4 * config.num_layers * config.num_heads * config.head_dim
    item = jnp.dtype(config.dtype).itemsize
    return Work(rows * (2 * used + pairs * seen), item * (there + each * rows * seen))
