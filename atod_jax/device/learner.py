"""One algorithm-blind update: executes any Signal on one minibatch of rows."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from atod_jax.core.aggregation import token_shares
from atod_jax.core.fused import TeacherHead, head_loss, token_stats
from atod_jax.core.losses import LossConfig, objective
from atod_jax.device.scoring import ScoreConfig, row_states, split, to_micro
from atod_jax.models import LanguageModel
from atod_jax.types import Mean, Rows, Signal, TokenStats, TrainState, TurnBatch

Metrics = dict[str, Mean]


class Piece(NamedTuple):
    """One minibatch: what the model reads, what it should learn, what each token weighs."""

    rows: Rows
    signal: Signal  # without diagnostics
    share: jax.Array  # f32[n, R]
    teacher: TeacherHead | None = None  # with an exact KL; states of these rows, the whole matrix


def init_state(
    model: LanguageModel, params: Any, *, tx: optax.GradientTransformation
) -> TrainState:
    """A fresh training state around given parameters; optimiser moments follow their shardings.

    What trains is copied, since updates overwrite it; what is frozen is shared.
    """
    trained, frozen = model.split(params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=jax.tree.map(jnp.copy, trained),
        frozen=frozen,
        opt_state=tx.init(trained),
    )


def minibatches(
    batch: TurnBatch,
    signal: Signal,
    *,
    minibatch_rows: int,
    aggregation: str,
    teacher: TeacherHead | None = None,
) -> list[Piece]:
    """Cuts [N, ...] arrays into N / minibatch_rows pieces.

    Shares are those of the full batch times the number of pieces, so the mean of the pieces' losses
    is the loss of the whole batch. They share the matrix of a teacher, which belongs to all rows.
    """
    states, matrix = teacher or (None, None)
    streams = signal.replace(diagnostics={}), states
    cut = _cut(batch, streams, minibatch_rows=minibatch_rows, aggregation=aggregation)
    return [
        Piece(rows, signal, share, None if matrix is None else TeacherHead(states, matrix))
        for rows, share, (signal, states) in cut
    ]


@functools.partial(jax.jit, static_argnames=("minibatch_rows", "aggregation"))
def _cut(batch: TurnBatch, streams: Any, *, minibatch_rows: int, aggregation: str) -> list[Any]:
    """(rows, shares, streams) of every minibatch."""
    rows = batch.rows
    share = token_shares(
        rows.action_mask, rows.traj, num_traj=batch.returns.shape[0], mode=aggregation
    )
    count = rows.prompt.shape[0] // minibatch_rows
    return split((rows, count * share, streams), size=minibatch_rows)


def make_update(
    model: LanguageModel,
    tx: optax.GradientTransformation,
    *,
    learning_rate: Callable[[jax.Array], jax.Array],
    loss: LossConfig,
    score: ScoreConfig,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """A compiled `update(state, piece, *, capacity=None) -> (state, metrics)`.

    The state is donated, except for what is frozen in it. Gradients are summed over micro-batches
    and the weight of a token is fixed, so the number of micro-batches changes memory and speed but
    not the gradient. `state.step` is left alone: it counts iterations. `capacity` is static, see
    `core.fused.token_stats`.
    """

    def per_token(stats: TokenStats, streams: Any) -> tuple[jax.Array, Metrics]:
        signal, mask, share, sampler_logp = streams
        return objective(
            stats, signal, action_mask=mask, share=share, cfg=loss, sampler_logp=sampler_logp
        )

    def piece_loss(
        trained: Any, frozen: Any, piece: Piece, capacity: int | None
    ) -> tuple[jax.Array, Metrics]:
        rows, params = piece.rows, model.join(trained, frozen)
        states, head = row_states(model, params, rows=rows), model.head(params)
        streams = piece.signal, rows.action_mask, piece.share, rows.sampler_logp
        of_head = {
            "action": rows.action,
            "action_mask": rows.action_mask,
            "cfg": score.head,
            "capacity": capacity,
            "teacher": piece.teacher,
        }
        if loss.surrogate == "gspo":  # a token's loss depends on all tokens of its row
            return per_token(token_stats(states, head, **of_head), streams)
        return head_loss(states, head, streams, per_token=per_token, **of_head)

    @functools.partial(jax.jit, donate_argnames="state", static_argnames="capacity")
    def step(
        state: TrainState, frozen: Any, piece: Piece, capacity: int | None
    ) -> tuple[TrainState, Metrics]:
        def gradient(part: Piece) -> tuple[Any, Metrics]:
            of_loss = jax.value_and_grad(piece_loss, has_aux=True)
            (value, metrics), grads = of_loss(state.params, frozen, part, capacity)
            return grads, metrics | {"loss/total": Mean(total=value, weight=jnp.ones(()))}

        with jax.named_scope("update"):
            grads, metrics = _summed(gradient, piece, score.micro_rows)
            metrics["loss/total"] = metrics["loss/total"].replace(weight=jnp.ones(()))
            direction, opt_state = tx.update(grads, state.opt_state, state.params)
            rate = learning_rate(state.step)
            params = jax.tree.map(
                lambda p, d: p - (rate * d).astype(p.dtype), state.params, direction
            )
            norm = optax.tree.norm(grads)
        metrics["update/grad_norm"] = Mean(total=norm, weight=jnp.ones(()))
        metrics["update/learning_rate"] = Mean(total=rate, weight=jnp.ones(()))
        return state.replace(params=params, opt_state=opt_state), metrics

    def update(
        state: TrainState, piece: Piece, *, capacity: int | None = None
    ) -> tuple[TrainState, Metrics]:
        new, metrics = step(state.replace(frozen=None), state.frozen, piece, capacity)
        return new.replace(frozen=state.frozen), metrics

    return update


def _summed(of: Callable[[Piece], Any], piece: Piece, micro_rows: int) -> Any:
    """The sum of a function over the micro-batches of a minibatch, one at a time."""
    states, matrix = piece.teacher or (None, None)
    micro = to_micro((piece.rows, piece.signal, piece.share, states), micro_rows)

    def one(part: Any) -> Any:
        rows, signal, share, states = part
        teacher = None if matrix is None else TeacherHead(states, matrix)
        return of(Piece(rows, signal, share, teacher))

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, one(part)), None

    like = jax.eval_shape(one, jax.tree.map(lambda x: x[0], micro))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    return jax.lax.scan(add, zeros, micro)[0]
