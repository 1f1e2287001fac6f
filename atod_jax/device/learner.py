"""One algorithm-blind update: executes any Signal on one minibatch, micro-batch by micro-batch."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from atod_jax.core.aggregation import token_shares
from atod_jax.core.fused import HeadConfig, TeacherHead, head_loss, token_stats
from atod_jax.core.losses import LossConfig, objective
from atod_jax.device.lines import Places, Room
from atod_jax.device.scoring import action_states, split
from atod_jax.models import LanguageModel
from atod_jax.types import Mean, Rows, Signal, TokenStats, TrainState, TurnBatch

Metrics = dict[str, Mean]


class Piece(NamedTuple):
    """One micro-batch: what the model reads, what it should learn, what each token weighs."""

    rows: Rows
    signal: Signal  # without what is only seen
    share: jax.Array  # f32[n, R]
    teacher: TeacherHead | None = None  # with an exact KL; states of these rows, the whole matrix


def init_state(
    model: LanguageModel, params: Any, *, tx: optax.GradientTransformation
) -> TrainState:
    """A fresh training state around given parameters; optimiser moments follow their shardings, and
    counters are everywhere.

    What trains is copied, since updates overwrite it; what is frozen is shared.
    """
    trained, frozen = model.split(params)
    begin = functools.partial(_begin, tx)
    if not any(isinstance(x, Tracer) for x in jax.tree.leaves(trained)):
        begin = jax.jit(begin, out_shardings=state_places(trained, tx))
    return begin(trained).replace(frozen=frozen)


def _begin(tx: optax.GradientTransformation, trained: Any) -> TrainState:
    copy = jax.tree.map(jnp.copy, trained)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(step=zero, params=copy, frozen=None, opt_state=tx.init(trained))


def state_places(trained: Any, tx: optax.GradientTransformation) -> TrainState:
    """Where the arrays of a state lie, without what is frozen, by where its parameters do."""
    places = jax.tree.map(lambda x: x.sharding, trained)
    one = jax.tree.leaves(places)[0]
    whole = NamedSharding(one.mesh, PartitionSpec()) if isinstance(one, NamedSharding) else one
    state = jax.eval_shape(functools.partial(_begin, tx), trained)
    moments = optax.tree.map_params(
        tx, lambda _, place: place, state.opt_state, places, transform_non_params=lambda _: whole
    )
    return state.replace(step=whole, params=places, opt_state=moments)


def minibatches(
    batch: TurnBatch,
    signal: Signal,
    *,
    minibatch: Sequence[int],
    aggregation: str,
    teacher: TeacherHead | None = None,
) -> list[list[Piece]]:
    """Cuts a batch into its micro-batches, one list a minibatch.

    Shares are those of the full batch times the number of minibatches, so the mean of their losses
    is the loss of the whole batch. All share the matrix of a teacher, which belongs to all rows.

    Args:
      batch: its lines are those of `len(minibatch)` equal micro-batches.
      signal: for its rows.
      minibatch: of every micro-batch, in order; -1 where it is empty, at the end.
      aggregation: see `core.aggregation`.
      teacher: states of all lines.
    """
    states, matrix = teacher or (None, None)
    count = max(minibatch) + 1
    share = _shares(batch, np.float32(count), aggregation=aggregation)
    whole = Piece(batch.rows, signal.replace(diagnostics={}, distill=None), share), states
    full = [number for number in minibatch if number >= 0]
    cut = split(whole, pieces=len(minibatch), first=len(full))
    pieces: list[list[Piece]] = [[] for _ in range(count)]
    for number, (piece, states) in zip(full, cut, strict=True):
        head = None if matrix is None else TeacherHead(states, matrix)
        pieces[number].append(piece._replace(teacher=head))
    return pieces


@functools.partial(jax.jit, static_argnames="aggregation")
def _shares(batch: TurnBatch, count: jax.Array, *, aggregation: str) -> jax.Array:
    """What a token weighs in its minibatch, `count` times as much as in the batch."""
    rows = batch.rows
    return count * token_shares(
        rows.action_mask, rows.traj, num_traj=batch.returns.shape[0], mode=aggregation
    )


class Update(NamedTuple):
    """Two programs, whatever the number of micro-batches; `room` is static, see `lines.Room`.

    The state is donated, except for what is frozen in it; `state.step` is left alone: it counts
    iterations.
    """

    gradient: jax.stages.Wrapped  # (sum so far, trained, frozen, piece, room): adds a micro-batch's
    step: jax.stages.Wrapped  # (state without what is frozen, gradient)

    def __call__(
        self, state: TrainState, pieces: Sequence[Piece], *, room: Room
    ) -> tuple[TrainState, list[Metrics]]:
        """The state after a minibatch, and metrics of its micro-batches and of the step."""
        grads, means = _zeros(state.params), []
        for piece in pieces:
            grads, metrics = self.gradient(grads, state.params, state.frozen, piece, room)
            means.append(metrics)
        new, metrics = self.step(state.replace(frozen=None), grads)
        return new.replace(frozen=state.frozen), [*means, metrics]

    def lower(self, state: TrainState, piece: Piece, room: Room) -> list[jax.stages.Lowered]:
        """Both programs, for arguments of this form."""
        grads = state.params  # of the same form
        return [
            self.gradient.lower(grads, state.params, state.frozen, piece, room),
            self.step.lower(state.replace(frozen=None), grads),
        ]


def make_update(
    model: LanguageModel,
    tx: optax.GradientTransformation,
    *,
    learning_rate: Callable[[jax.Array], jax.Array],
    loss: LossConfig,
    head: HeadConfig,
    places: TrainState | None = None,
) -> Update:
    """The step of one minibatch.

    The weight of a token is fixed, so the number of micro-batches changes memory and speed but not
    the gradient. With the `places` of a state, what comes out lies where the next call takes it
    from; left to the compiler it would lie the same, but be told in other words, which JAX compiles
    again.
    """
    of_gradient = (places.params, None) if places else None
    of_step = (places, None) if places else None

    @functools.partial(
        jax.jit, donate_argnames="total", static_argnames="room", out_shardings=of_gradient
    )
    def gradient(total: Any, trained: Any, frozen: Any, piece: Piece, room: Room) -> Any:
        def read(trained: Any) -> tuple[jax.Array, Places]:
            return action_states(model, model.join(trained, frozen), piece.rows, room=room.line)

        def rest(states: jax.Array, tables: Any) -> tuple[jax.Array, Metrics]:
            matrix = model.head(model.join(trained | tables, frozen))
            return _loss(
                states, matrix, piece, places=places, capacity=room.head, cfg=head, loss=loss
            )

        with jax.named_scope("gradient"):
            states, pull, places = jax.vjp(read, trained, has_aux=True)
            tables = {name: trained[name] for name in ("embed", "head") if name in trained}
            of_rest = jax.value_and_grad(rest, argnums=(0, 1), has_aux=True)
            (value, metrics), (change, grads) = of_rest(states, tables)
            # The head's gradient joins the sum before the layers follow: it is as large as the
            # table, and need not be kept meanwhile.
            sums = jax.tree.map(jnp.add, {name: total[name] for name in tables}, grads)
            sums, change = jax.lax.optimization_barrier((sums, change))
            metrics["loss/total"] = Mean(total=value, weight=jnp.zeros(()))  # counted by `step`
            return jax.tree.map(jnp.add, total | sums, pull(change)[0]), metrics

    @functools.partial(jax.jit, donate_argnames="state", out_shardings=of_step)
    def step(state: TrainState, grads: Any) -> tuple[TrainState, Metrics]:
        with jax.named_scope("step"):
            direction, opt_state = tx.update(grads, state.opt_state, state.params)
            rate = learning_rate(state.step)
            params = jax.tree.map(
                lambda p, d: p - (rate * d).astype(p.dtype), state.params, direction
            )
            one, norm = jnp.ones(()), optax.tree.norm(grads)
        metrics = {
            "loss/total": Mean(total=jnp.zeros(()), weight=one),
            "update/grad_norm": Mean(total=norm, weight=one),
            "update/learning_rate": Mean(total=rate, weight=one),
        }
        return state.replace(params=params, opt_state=opt_state), metrics

    return Update(gradient, step)


def _loss(
    states: jax.Array,
    matrix: jax.Array,
    piece: Piece,
    *,
    places: Places,
    capacity: int | None,
    cfg: HeadConfig,
    loss: LossConfig,
) -> tuple[jax.Array, Metrics]:
    """Of a micro-batch, from its states and the output embedding."""

    def per_token(stats: TokenStats, streams: Any) -> tuple[jax.Array, Metrics]:
        signal, mask, share, sampler_logp = streams
        return objective(
            stats, signal, action_mask=mask, share=share, cfg=loss, sampler_logp=sampler_logp
        )

    rows = piece.rows
    streams = piece.signal, rows.action_mask, piece.share, rows.sampler_logp
    of_head = {
        "action": places.by_line(rows.action),
        "action_mask": places.used,
        "cfg": cfg,
        "capacity": capacity,
        "teacher": piece.teacher,
    }
    if loss.surrogate == "gspo":  # a token's loss depends on all tokens of its row
        stats = token_stats(states, matrix, **of_head)
        by_row = jax.tree.map(lambda x: places.by_row(x, rows.action_mask), stats)
        return per_token(by_row, streams)
    by_line = jax.tree.map(places.by_line, streams)
    return head_loss(states, matrix, by_line, per_token=per_token, **of_head)


def _zeros(params: Any) -> Any:
    """A gradient of nothing, split as the parameters are."""
    leaves, structure = jax.tree.flatten(params)
    if any(isinstance(x, Tracer) for x in leaves):
        return jax.tree.map(jnp.zeros_like, params)
    program = _zeros_program(tuple((x.shape, x.dtype, x.sharding) for x in leaves))
    return jax.tree.unflatten(structure, program())


@functools.cache
def _zeros_program(leaves: tuple[tuple[Any, Any, Any], ...]) -> Callable[[], list[jax.Array]]:
    """One program for all arrays, of these shapes, types and shardings."""
    return jax.jit(
        lambda: [jnp.zeros(shape, dtype) for shape, dtype, _ in leaves],
        out_shardings=[place for _, _, place in leaves],
    )
