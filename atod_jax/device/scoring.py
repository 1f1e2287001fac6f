"""Teacher-forced statistics of sampled actions; the same code for student and teacher."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from atod_jax.core.fused import HeadConfig, token_stats
from atod_jax.device.lines import Places, Room, places_of
from atod_jax.models import LanguageModel
from atod_jax.types import Rows, TokenStats, TurnBatch


def action_states(
    model: LanguageModel, params: Any, rows: Rows, *, room: int
) -> tuple[jax.Array, Places]:
    """Final states [L, A, D] of the columns that predict the action tokens, and where these are.

    Args:
      model: static.
      params: of the model, all of them.
      rows: prompts and sampled actions.
      room: A, places of a line.
    """
    places = places_of(rows, room)
    assert rows.lines is not None
    hidden = model.hidden(params, rows.lines.tokens, places.lengths, pick=places.column)
    return hidden, places


def teacher_rows(batch: TurnBatch) -> Rows:
    """The rows as the teacher reads them: with its own prompts where the batch has some."""
    return batch.rows.replace(lines=batch.teacher_lines or batch.rows.lines)


@functools.partial(jax.jit, static_argnames="pieces")
def split(tree: Any, *, pieces: int) -> list[Any]:
    """Cuts the leading axis of every array into equal pieces, as one program.

    Slicing arrays that are spread over devices one by one would dispatch a program with its own
    communication per array and piece.
    """

    def piece(m: int) -> Any:
        return jax.tree.map(lambda x: jnp.split(x, pieces)[m], tree)

    return [piece(m) for m in range(pieces)]


@functools.partial(jax.jit, static_argnames="empty")
def join(trees: list[Any], *, empty: int = 0) -> Any:
    """The inverse of `split`, with `empty` pieces of zeros at the end."""
    return jax.tree.map(lambda *x: jnp.concatenate([*x, *[jnp.zeros_like(x[0])] * empty]), *trees)


@functools.cache
def make_score(
    model: LanguageModel, cfg: HeadConfig, *, keep_states: bool = False, whose: str = "student"
) -> jax.stages.Wrapped:
    """A jitted `score(params, rows, *, room) -> TokenStats` of one micro-batch.

    `room` is static, see `lines.Room`.
    """

    def score(params: Any, rows: Rows, *, room: Room) -> TokenStats:
        with jax.named_scope("score"):
            hidden, places = action_states(model, params, rows, room=room.line)
            stats = token_stats(
                hidden,
                model.head(params),
                action=places.by_line(rows.action),
                action_mask=places.used,
                cfg=cfg,
                capacity=room.head,
            )
            stats = jax.tree.map(lambda x: places.by_row(x, rows.action_mask), stats)
            return stats.replace(states=hidden) if keep_states else stats

    score.__name__ = f"score_{whose}"  # under which it is compiled
    return jax.jit(score, static_argnames="room")
