"""Teacher-forced statistics of sampled actions; the same code for student and teacher."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from atod_jax.core.fused import HeadConfig, TeacherHead, token_stats
from atod_jax.models import LanguageModel
from atod_jax.types import Rows, TokenStats, TurnBatch


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
    """How rows are pushed through a model; sizes change memory and speed, never the numbers."""

    micro_rows: int  # rows per forward pass
    head: HeadConfig  # the policy that is scored


def row_stats(
    model: LanguageModel,
    params: Any,
    *,
    rows: Rows,
    cfg: ScoreConfig,
    capacity: int | None = None,
    teacher: TeacherHead | None = None,
    keep_states: bool = False,
) -> TokenStats:
    """Log-probability and entropy [n, R] of the sampled tokens under `params`.

    Args:
      model: static.
      params: of the model, all of them.
      rows: prompts and sampled actions.
      cfg: the policy that is scored.
      capacity: action tokens that reach the head, see `core.fused.token_stats`.
      teacher: adds its log-probability and the exact KL.
      keep_states: keeps the R final states.
    """
    hidden = row_states(model, params, rows=rows)
    stats = token_stats(
        hidden,
        model.head(params),
        action=rows.action,
        action_mask=rows.action_mask,
        cfg=cfg.head,
        capacity=capacity,
        teacher=teacher,
    )
    return stats.replace(states=hidden) if keep_states else stats


def row_states(model: LanguageModel, params: Any, *, rows: Rows) -> jax.Array:
    """The final states [n, R, D] that predict the sampled tokens.

    The last action token predicts nothing, so it is not fed: column P-1+t of the input predicts
    action token t, and only those R columns leave the model.
    """
    p, r = rows.prompt.shape[1], rows.action.shape[1]
    prompt_valid = jnp.arange(p)[None, :] >= p - rows.prompt_length[:, None]
    tokens = jnp.concatenate([rows.prompt, rows.action], axis=1)[:, :-1]
    valid = jnp.concatenate([prompt_valid, rows.action_mask], axis=1)[:, :-1]
    return model.hidden(params, tokens, valid, tail=r)[0]


def teacher_rows(batch: TurnBatch) -> Rows:
    """The rows as the teacher reads them: with its own prompts where the batch has some."""
    if batch.teacher_prompt is None:
        return batch.rows
    return batch.rows.replace(
        prompt=batch.teacher_prompt, prompt_length=batch.teacher_prompt_length
    )


@functools.partial(jax.jit, static_argnames="size")
def split(tree: Any, *, size: int) -> list[Any]:
    """[N, ...] -> N / size trees of [size, ...], as one program.

    Slicing arrays that are spread over devices one by one would dispatch a program with its own
    communication per array and piece.
    """
    count = jax.tree.leaves(tree)[0].shape[0] // size

    def piece(m: int) -> Any:
        return jax.tree.map(lambda x: x[m * size : (m + 1) * size], tree)

    return [piece(m) for m in range(count)]


@jax.jit
def join(trees: list[Any]) -> Any:
    """The inverse of `split`."""
    return jax.tree.map(lambda *x: jnp.concatenate(x), *trees)


def to_micro(tree: Any, micro_rows: int) -> Any:
    """[N, ...] -> [N / micro_rows, micro_rows, ...], strided so that a row keeps its device.

    Row i goes to micro-batch i % M: with N sharded in contiguous pieces, every micro-batch then
    takes the same share from each device and no data moves.
    """
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(micro_rows, -1, *x.shape[1:]), 0, 1), tree)


def from_micro(tree: Any) -> Any:
    """The inverse of `to_micro`."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), tree)


def make_score(
    model: LanguageModel, cfg: ScoreConfig, *, keep_states: bool = False
) -> jax.stages.Wrapped:
    """A jitted `score(params, rows, *, capacity=None) -> TokenStats`, by micro-batches."""

    @functools.partial(jax.jit, static_argnames="capacity")
    def score(params: Any, rows: Rows, *, capacity: int | None = None) -> TokenStats:
        def one(part: Rows) -> TokenStats:
            return row_stats(
                model, params, rows=part, cfg=cfg, capacity=capacity, keep_states=keep_states
            )

        with jax.named_scope("score"):
            return from_micro(jax.lax.map(one, to_micro(rows, cfg.micro_rows)))

    return score
