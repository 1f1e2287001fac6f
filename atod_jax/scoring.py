"""Teacher-forced statistics of sampled actions; the same code for student and teacher."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from atod_jax.core.fused import token_stats
from atod_jax.models import LanguageModel
from atod_jax.types import Rows, TokenStats


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
    """How rows are pushed through a model; sizes change memory and speed, never the numbers."""

    temperature: float  # of the policy being scored; the rollout's
    micro_rows: int  # rows per forward pass
    head_block: int  # action tokens per block of the vocabulary head
    forbidden: tuple[int, ...] = ()  # ids outside the policy's support, e.g. padding


def row_stats(model: LanguageModel, params: Any, rows: Rows, cfg: ScoreConfig) -> TokenStats:
    """Log-probability and entropy [n, R] of the sampled tokens under `params`.

    The last action token predicts nothing, so it is not fed: column P-1+t of the input predicts
    action token t, and only those R columns leave the model.
    """
    p, r = rows.prompt.shape[1], rows.action.shape[1]
    prompt_valid = jnp.arange(p)[None, :] >= p - rows.prompt_length[:, None]
    tokens = jnp.concatenate([rows.prompt, rows.action], axis=1)[:, :-1]
    valid = jnp.concatenate([prompt_valid, rows.action_mask], axis=1)[:, :-1]
    hidden, _ = model.hidden(params, tokens, valid, tail=r)
    return token_stats(
        hidden,
        model.head(params),
        rows.action,
        rows.action_mask,
        temperature=cfg.temperature,
        block=cfg.head_block,
        forbidden=cfg.forbidden,
    )


def to_micro(tree: Any, micro_rows: int) -> Any:
    """[N, ...] -> [N / micro_rows, micro_rows, ...], strided so that a row keeps its device.

    Row i goes to micro-batch i % M: with N sharded in contiguous pieces, every micro-batch then
    takes the same share from each device and no data moves.
    """
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(micro_rows, -1, *x.shape[1:]), 0, 1), tree)


def from_micro(tree: Any) -> Any:
    """The inverse of `to_micro`."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), tree)


def make_score(model: LanguageModel, cfg: ScoreConfig) -> Callable[[Any, Rows], TokenStats]:
    """A jitted `score(params, rows) -> TokenStats`, micro-batch after micro-batch."""

    @jax.jit
    def score(params: Any, rows: Rows) -> TokenStats:
        with jax.named_scope("score"):
            micro = to_micro(rows, cfg.micro_rows)
            return from_micro(jax.lax.map(lambda r: row_stats(model, params, r, cfg), micro))

    return score
