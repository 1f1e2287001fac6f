"""A small model of every family, random lines for it, and what a turn gives alone in its line."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from atod_jax.models import LanguageModel, ModelConfig, build
from atod_jax.models.rope import Yarn
from atod_jax.records import Request

BASE = {
    "vocab_size": 48, "hidden_size": 16, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2,
    "head_dim": 8, "intermediate_size": 24, "rope_theta": 1e4, "rms_eps": 1e-6,
}  # fmt: skip
YARN = Yarn(factor=4.0, sharpness=1.1, original=8, fast=2.0, slow=0.5, whole=True)
FAMILIES = {
    "llama": ModelConfig(**BASE, qk_norm=False, tie_embeddings=True, rope_scaling=YARN),
    "qwen2": ModelConfig(**BASE, qkv_bias=True, qk_norm=False, tie_embeddings=True),
    "qwen3": ModelConfig(**BASE, tie_embeddings=False),
    "qwen3_moe": ModelConfig(**BASE, num_experts=4, experts_per_token=2, tie_embeddings=False),
}


@functools.cache
def loud_params(config: ModelConfig):
    """Parameters large enough that attention and routing are far from uniform, norms from one."""
    rng = np.random.default_rng(0)

    def one(path, x):
        noise = 0.3 * rng.standard_normal(x.shape).astype(np.float32)
        return 1 + noise if path[-1].key == "scale" else noise

    shapes = jax.eval_shape(build(config).init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(one, shapes)


def make_turns(sizes: Sequence[int], seed: int = 1) -> list[np.ndarray]:
    """Random ids of turns of these many tokens."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, BASE["vocab_size"], n).astype(np.int32) for n in sizes]


def packed(
    turns: Sequence[np.ndarray], lines: Sequence[Sequence[int | None]], columns: int
) -> tuple[np.ndarray, np.ndarray]:
    """tokens [L, W] and lengths [L, M] of lines that hold the turns of these numbers.

    None is a place without a turn; what follows the last turn is junk.
    """
    places = max(map(len, lines))
    tokens = np.random.default_rng(9).integers(0, BASE["vocab_size"], (len(lines), columns))
    lengths = np.zeros((len(lines), places), np.int32)
    for line, numbers in enumerate(lines):
        held = [turns[n] if n is not None else np.zeros(0, np.int32) for n in numbers]
        lengths[line, : len(held)] = [len(x) for x in held]
        row = np.concatenate(held)
        tokens[line, : len(row)] = row
    return tokens.astype(np.int32), lengths


def each_alone(count: int) -> list[list[int]]:
    """Lines of one turn."""
    return [[n] for n in range(count)]


def random_lines(lines: int = 8, columns: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Lines of two turns, with some junk behind them."""
    sizes = np.random.default_rng(1).integers(1, columns // 2 + 1, 2 * lines)
    numbers = [[2 * n, 2 * n + 1] for n in range(lines)]
    return packed(make_turns(sizes), numbers, columns)


def by_turn(states, lines: Sequence[Sequence[int | None]], lengths: np.ndarray) -> dict:
    """Number of a turn -> its part of [L, W, ...]."""
    ends = np.cumsum(lengths, axis=1)
    return {
        n: np.asarray(states[line, ends[line, m] - lengths[line, m] : ends[line, m]])
        for line, numbers in enumerate(lines)
        for m, n in enumerate(numbers)
        if n is not None
    }


def token_loss(model: LanguageModel, params, tokens, lengths):
    """The summed cross-entropy of all tokens of all turns but the first of each."""
    ends = jnp.cumsum(lengths, axis=1)
    number = jnp.sum(jnp.arange(tokens.shape[1])[None, :, None] >= ends[:, None], axis=2)
    same = (number[:, 1:] == number[:, :-1]) & (number[:, 1:] < lengths.shape[1])
    hidden = model.hidden(params, tokens, lengths)[:, :-1]
    logp = jax.nn.log_softmax(jnp.einsum("lwd,vd->lwv", hidden, model.head(params)))
    picked = jnp.take_along_axis(logp, tokens[:, 1:, None], axis=-1)[..., 0]
    return -jnp.sum(jnp.where(same, picked, 0.0))


value_and_grad = jax.jit(jax.value_and_grad(token_loss, argnums=1), static_argnums=0)


def write(policy, weights, prompts: Sequence[np.ndarray], rows: Sequence[int]) -> list:
    """The actions of prompts that are all there at the start."""
    sampler = policy.sampler(weights, jax.random.key(0))
    sampler.submit([Request(row, 0, prompt) for row, prompt in zip(rows, prompts)])
    actions: dict = {}
    while (some := sampler.advance(len(rows) - len(actions))) is not None:
        actions |= dict(some)
    return [actions[row] for row in rows]
