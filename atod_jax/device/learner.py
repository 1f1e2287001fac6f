"""One algorithm-blind update: executes any Signal on one minibatch of rows."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from atod_jax.core.aggregation import token_shares
from atod_jax.core.fused import Teacher
from atod_jax.core.losses import LossConfig, objective
from atod_jax.device.scoring import ScoreConfig, row_stats, split, to_micro
from atod_jax.models import LanguageModel
from atod_jax.types import (
    Mean,
    Rows,
    Signal,
    TrainState,
    TurnBatch,
    frozen_part,
    trained_part,
    with_frozen,
)

Metrics = dict[str, Mean]


class Piece(NamedTuple):
    """One minibatch: what the model reads, what it should learn, what each token weighs."""

    rows: Rows
    signal: Signal  # without diagnostics
    share: jax.Array  # f32[n, R]


def owned(params: Any) -> Any:
    """The same parameters with a copy of what trains, which an update may overwrite."""
    return with_frozen(jax.tree.map(jnp.copy, trained_part(params)), frozen_part(params))


def init_state(params: Any, tx: optax.GradientTransformation) -> TrainState:
    """A fresh training state around given parameters; optimiser moments follow their shardings."""
    moments = tx.init(trained_part(params))
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=moments)


@functools.partial(jax.jit, static_argnames=("minibatch_rows", "aggregation"))
def minibatches(
    batch: TurnBatch, signal: Signal, *, minibatch_rows: int, aggregation: str
) -> list[Piece]:
    """Cuts [N, ...] arrays into N / minibatch_rows pieces.

    Shares are those of the full batch times the number of pieces, so the mean of the pieces' losses
    is the loss of the whole batch.
    """
    rows = batch.rows
    share = token_shares(
        rows.action_mask, rows.traj, num_traj=batch.returns.shape[0], mode=aggregation
    )
    count = rows.prompt.shape[0] // minibatch_rows
    whole = Piece(rows, signal.replace(diagnostics={}), count * share)
    return split(whole, size=minibatch_rows)


def make_update(
    model: LanguageModel,
    tx: optax.GradientTransformation,
    learning_rate: Callable[[jax.Array], jax.Array],
    *,
    loss: LossConfig,
    score: ScoreConfig,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """A jitted `update(state, piece, capacity=None, teacher_head=None, frozen=None)`.

    It returns (state, metrics). The state is donated. Gradients are summed over micro-batches and
    the weight of a token is fixed, so the number of micro-batches changes memory and speed but not
    the gradient. `state.step` is left alone: it counts iterations. `capacity` (static) is the room
    for action tokens at the head; `teacher_head` [V, E] belongs to the states in `piece.signal`;
    `frozen` are the parameters that the state does not hold, see `whole_state`.
    """

    def micro_loss(
        params: Any, piece: Piece, capacity: int | None, teacher_head: Any, frozen: Any
    ) -> tuple[jax.Array, Metrics]:
        rows, signal, share = piece
        teacher = None
        if signal.kl_weight is not None:
            teacher = Teacher(signal.teacher_hidden, teacher_head)
        params = with_frozen(params, frozen)
        stats = row_stats(model, params, rows, score, capacity=capacity, teacher=teacher)
        return objective(
            stats, rows.action_mask, signal, share, loss, sampler_logp=rows.sampler_logp
        )

    def accumulate(params: Any, piece: Piece, *rest: Any) -> tuple[Any, Metrics]:
        micro = to_micro(piece, score.micro_rows)

        def one(part: Piece) -> tuple[Any, Metrics]:
            (value, metrics), grads = jax.value_and_grad(micro_loss, has_aux=True)(
                params, part, *rest
            )
            return grads, metrics | {"loss/total": Mean(total=value, weight=jnp.ones(()))}

        def add(total: Any, part: Piece) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, one(part)), None

        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype),
            jax.eval_shape(one, jax.tree.map(lambda x: x[0], micro)),
        )
        (grads, metrics), _ = jax.lax.scan(add, zeros, micro)
        metrics["loss/total"] = metrics["loss/total"].replace(weight=jnp.ones(()))
        return grads, metrics

    @functools.partial(jax.jit, donate_argnums=0, static_argnums=2)
    def update(
        state: TrainState,
        piece: Piece,
        capacity: int | None = None,
        teacher_head: Any = None,
        frozen: Any = None,
    ) -> tuple[TrainState, Metrics]:
        with jax.named_scope("update"):
            grads, metrics = accumulate(state.params, piece, capacity, teacher_head, frozen)
            direction, opt_state = tx.update(grads, state.opt_state, state.params)
            rate = learning_rate(state.step)
            params = jax.tree.map(
                lambda p, d: p - (rate * d).astype(p.dtype), state.params, direction
            )
            norm = optax.global_norm(grads)
        metrics["update/grad_norm"] = Mean(total=norm, weight=jnp.ones(()))
        metrics["update/learning_rate"] = Mean(total=rate, weight=jnp.ones(()))
        return state.replace(params=params, opt_state=opt_state), metrics

    return update


def whole_state(update: Callable[..., tuple[TrainState, Metrics]]) -> Callable[..., Any]:
    """An update of `make_update` for states with all parameters, of which some may be frozen.

    Those are neither donated nor copied, so other states may share them.
    """

    def apply(
        state: TrainState, piece: Piece, capacity: int | None = None, teacher_head: Any = None
    ) -> tuple[TrainState, Metrics]:
        frozen = frozen_part(state.params)
        state = state.replace(params=trained_part(state.params))
        state, metrics = update(state, piece, capacity, teacher_head, frozen)
        return state.replace(params=with_frozen(state.params, frozen)), metrics

    return apply
