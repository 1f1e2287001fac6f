"""One algorithm-blind update: executes any Signal on one minibatch of rows."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from atod_jax.core.losses import LossConfig, objective
from atod_jax.models import LanguageModel
from atod_jax.scoring import ScoreConfig, row_stats, to_micro
from atod_jax.types import Mean, Rows, Signal, TrainState

Metrics = dict[str, Mean]


def init_state(params: Any, tx: optax.GradientTransformation) -> TrainState:
    """A fresh training state around given parameters; optimiser moments follow their shardings."""
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params))


def minibatches(rows: Rows, signal: Signal, minibatch_rows: int) -> list[tuple[Rows, Signal]]:
    """Cuts [N, ...] arrays into N / minibatch_rows pieces.

    The full-batch denominator is shared out evenly, so the sum of the pieces' losses over their
    number is the loss of the whole batch.
    """
    count = rows.prompt.shape[0] // minibatch_rows

    def piece(tree: Any, m: int) -> Any:
        return jax.tree.map(lambda x: x[m * minibatch_rows : (m + 1) * minibatch_rows], tree)

    streams = (signal.advantage, signal.ce_weight, signal.old_logp)
    result = []
    for m in range(count):
        advantage, ce_weight, old_logp = piece(streams, m)
        cut = Signal(
            advantage=advantage,
            ce_weight=ce_weight,
            old_logp=old_logp,
            norm=signal.norm / count,
            diagnostics={},
        )
        result.append((piece(rows, m), cut))
    return result


def make_update(
    model: LanguageModel,
    tx: optax.GradientTransformation,
    learning_rate: Callable[[jax.Array], jax.Array],
    *,
    loss: LossConfig,
    score: ScoreConfig,
) -> Callable[[TrainState, Rows, Signal], tuple[TrainState, Metrics]]:
    """A jitted `update(state, rows, signal) -> (state, metrics)`; the state is donated.

    Gradients are summed over micro-batches with one fixed denominator, so their number changes
    memory and speed but not the gradient. `state.step` is left alone: it counts iterations.
    """

    def micro_loss(params: Any, rows: Rows, signal: Signal) -> tuple[jax.Array, Metrics]:
        stats = row_stats(model, params, rows, score)
        return objective(stats, rows.action_mask, signal, loss)

    def accumulate(params: Any, rows: Rows, signal: Signal) -> tuple[Any, Metrics]:
        streams = (signal.advantage, signal.ce_weight, signal.old_logp)
        micro = to_micro((rows, streams), score.micro_rows)

        def one(piece: Any) -> tuple[Any, Metrics]:
            piece_rows, (advantage, ce_weight, old_logp) = piece
            cut = signal.replace(advantage=advantage, ce_weight=ce_weight, old_logp=old_logp)
            (value, metrics), grads = jax.value_and_grad(micro_loss, has_aux=True)(
                params, piece_rows, cut
            )
            metrics["loss/total"] = Mean(total=value, weight=jnp.ones(()))
            return grads, metrics

        def add(total: Any, piece: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, one(piece)), None

        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype),
            jax.eval_shape(one, jax.tree.map(lambda x: x[0], micro)),
        )
        (grads, metrics), _ = jax.lax.scan(add, zeros, micro)
        metrics["loss/total"] = metrics["loss/total"].replace(weight=jnp.ones(()))
        return grads, metrics

    def update(state: TrainState, rows: Rows, signal: Signal) -> tuple[TrainState, Metrics]:
        with jax.named_scope("update"):
            grads, metrics = accumulate(state.params, rows, signal)
            direction, opt_state = tx.update(grads, state.opt_state, state.params)
            rate = learning_rate(state.step)
            params = jax.tree.map(
                lambda p, d: p - (rate * d).astype(p.dtype), state.params, direction
            )
            norm = optax.global_norm(grads)
        metrics["update/grad_norm"] = Mean(total=norm, weight=jnp.ones(()))
        metrics["update/learning_rate"] = Mean(total=rate, weight=jnp.ones(()))
        return state.replace(params=params, opt_state=opt_state), metrics

    return jax.jit(update, donate_argnums=0)
