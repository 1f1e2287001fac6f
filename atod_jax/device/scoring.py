"""Teacher-forced statistics of sampled actions; the same code for student and teacher."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from atod_jax.core.fused import HeadConfig, token_stats
from atod_jax.device.lines import Places, Room, places_of
from atod_jax.models import LanguageModel
from atod_jax.sharding import split_rows
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


def split(tree: Any, *, pieces: int, first: int | None = None) -> list[Any]:
    """Cuts the leading axis of every array into equal pieces; only the first few, if told so.

    Devices exchange rows once, so that each piece is spread over all of them.
    """
    stack = _stack(tree, pieces=pieces)
    return [_piece(stack, np.int32(m)) for m in range(pieces if first is None else first)]


@functools.partial(jax.jit, static_argnames="pieces")
def _stack(tree: Any, *, pieces: int) -> Any:
    """[N, ...] -> [pieces, N / pieces, ...], the rows of each split over the devices."""
    return jax.tree.map(lambda x: split_rows(x.reshape(pieces, -1, *x.shape[1:]), axis=1), tree)


@jax.jit
def _piece(stack: Any, m: jax.Array) -> Any:
    return jax.tree.map(lambda x: x[m], stack)


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


@functools.cache
def make_likeliest(cfg: HeadConfig, count: int) -> jax.stages.Wrapped:
    """A jitted `likeliest(matrix, states, rows, at, *, room) -> (f32[M, count], i32[M, count])`.

    Log-probabilities, falling, and ids of what a model would rather say at some tokens: `matrix` is
    its output embedding, `states` those of `action_states` for these rows, and `at` i32[M, 2] the
    row and the place in its action of each token. `room` is static, see `lines.Room`.
    """

    def likeliest(
        matrix: jax.Array, states: jax.Array, rows: Rows, at: jax.Array, *, room: Room
    ) -> tuple[jax.Array, jax.Array]:
        per_line, width = rows.traj.shape[0] // states.shape[0], rows.action.shape[1]
        line, part = jnp.divmod(at[:, 0], per_line)
        place = places_of(rows, room.line).place[line, part * width + at[:, 1]]
        logits = jnp.einsum(
            "vd,md->mv", matrix, states[line, place], preferred_element_type=jnp.float32
        )
        ids = jnp.arange(matrix.shape[0])
        said = ids < cfg.vocab if cfg.vocab else ids >= 0
        for forbidden in cfg.forbidden:
            said &= ids != forbidden
        logp = jax.nn.log_softmax(jnp.where(said, logits / cfg.temperature, -jnp.inf))
        return jax.lax.top_k(logp, min(count, matrix.shape[0]))

    return jax.jit(likeliest, static_argnames="room")
