"""The programs of learning: the head, scoring, the update."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from atod_jax.core.fused import HeadConfig, TeacherHead, head_loss
from atod_jax.core.losses import LossConfig
from atod_jax.device import learner
from atod_jax.device.optim import OptimConfig, make_learning_rate, make_optimizer
from atod_jax.device.scoring import make_score
from atod_jax.estimate import work
from atod_jax.estimate.programs import (
    Program,
    frozen,
    frozen_places,
    param_places,
    random_key,
    stored,
    tree_places,
    whole,
)
from atod_jax.estimate.work import Work
from atod_jax.estimate.workload import Batch
from atod_jax.models import LanguageModel
from atod_jax.sharding import Layout, batch_sharding
from atod_jax.types import TENSOR_AXIS, Signal, TokenStats

LOSS, OPTIM = LossConfig(), OptimConfig()


class Update(NamedTuple):
    """How a student learns, see `learner.make_update`."""

    model: LanguageModel
    layout: Layout
    loss: LossConfig = LOSS
    optim: OptimConfig = OPTIM
    teacher: LanguageModel | None = None  # whose head an exact KL needs

    @property
    def tx(self) -> Any:
        return make_optimizer(self.optim)

    @property
    def programs(self) -> learner.Update:
        """The two of them."""
        return learner.make_update(
            self.model,
            self.tx,
            learning_rate=make_learning_rate(self.optim, 1),
            loss=self.loss,
            head=HeadConfig(mesh=self.layout.mesh),
            places=self.state_places().replace(frozen=None),
        )

    def whole(self, batch: Batch) -> Program:
        """The first minibatch of a batch, all its micro-batches, and the step."""
        count = batch.minibatch.count(0)
        return Program(
            name="update",
            run=jax.jit(functools.partial(self.programs, room=batch.room), donate_argnums=0),
            make=lambda: (self.state(), [self.piece(batch, n) for n in range(count)]),
            places=(self.state_places(), [self.piece_places()] * count),
            mesh=self.layout.mesh,
            work=work.forward(self.model.config, batch.lengths).times(3 / batch.minibatches),
            replaced=0,
            resident=slice(1),
        )

    def gradient(self, batch: Batch) -> Program:
        """The gradient of one micro-batch, added to those before it."""
        places = self.state_places()

        def make() -> tuple:
            state = self.state()
            total = jax.tree.map(jnp.zeros_like, state.params)
            return total, state.params, state.frozen, self.piece(batch, 0)

        return Program(
            name="gradient",
            run=self.programs.gradient,
            make=make,
            places=(places.params, places.params, places.frozen, self.piece_places()),
            mesh=self.layout.mesh,
            work=work.forward(self.model.config, batch.lengths).times(3 / batch.micro_batches),
            options={"room": batch.room},
            replaced=0,
            resident=slice(1, 3),
        )

    def step(self) -> Program:
        """The optimiser's step."""
        places = self.state_places().replace(frozen=None)

        def make() -> tuple:
            state = self.state()
            return state.replace(frozen=None), jax.tree.map(jnp.zeros_like, state.params)

        learnt = sum(math.prod(x.shape) for x in jax.tree.leaves(jax.eval_shape(make)[1]))
        return Program(
            name="step",
            run=self.programs.step,
            make=make,
            places=(places, places.params),
            mesh=self.layout.mesh,
            work=Work(0.0, 7 * 4 * learnt),  # weights and moments read and written, a gradient read
            replaced=0,
            resident=slice(1),
        )

    def state(self) -> Any:
        """That of random weights."""
        return learner.init_state(self.model, stored(self.model), tx=self.tx)

    def state_places(self) -> Any:
        """Where they lie."""
        state = jax.eval_shape(self.state)
        trained = jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
            state.params,
            tree_places(state.params, self.layout),
        )
        frozen = state.frozen and tree_places(state.frozen, self.layout)
        return learner.state_places(trained, self.tx).replace(frozen=frozen)

    def piece(self, batch: Batch, number: int) -> learner.Piece:
        """A micro-batch with some signal."""
        rows = jax.tree.map(jnp.asarray, batch.rows(number))
        ones = jnp.ones(rows.action.shape, jnp.float32)
        signal = Signal(
            advantage=ones, old_logp=-ones, kl_weight=ones if self.teacher else None, diagnostics={}
        )
        their = None
        if self.teacher:
            shape = (batch.form.micro_lines, batch.room.line, self.teacher.config.hidden_size)
            matrix = self.teacher.head(stored(self.teacher))
            their = TeacherHead(jnp.zeros(shape, matrix.dtype), matrix)
        return learner.Piece(rows, signal, ones / ones.size, their)

    def piece_places(self) -> Any:
        """Rows and lines split; the teacher's matrix as the student's."""
        rows: Any = batch_sharding(self.layout.mesh)
        matrix: Any = NamedSharding(self.layout.mesh, PartitionSpec(TENSOR_AXIS))
        return learner.Piece(rows, rows, rows, TeacherHead(rows, matrix) if self.teacher else None)


def score(
    model: LanguageModel,
    batch: Batch,
    layout: Layout,
    *,
    teacher: str = "",
    keep_states: bool = False,
) -> Program:
    """Log-probabilities and entropies of a micro-batch.

    Args:
      model: a student in training, or a frozen teacher.
      batch: of the turns.
      layout: of the model.
      teacher: the type in which its weights are kept, if it is one.
      keep_states: as an exact KL needs them.
    """

    def make() -> tuple:
        params = frozen(model, teacher) if teacher else stored(model)
        return params, jax.tree.map(jnp.asarray, batch.rows(0))

    head = HeadConfig(mesh=layout.mesh)
    places = frozen_places(model, layout, teacher) if teacher else param_places(model, layout)
    return Program(
        name="score_teacher" if teacher else "score",
        run=make_score(model, head, keep_states=keep_states),
        make=make,
        places=(places, batch_sharding(layout.mesh)),
        mesh=layout.mesh,
        work=work.forward(model.config, batch.lengths).times(1 / batch.micro_batches),
        options={"room": batch.room},
        resident=slice(1),
    )


def head(
    tokens: int, dtype: str, layout: Layout, *, width: int, vocab: int, teacher: bool = False
) -> Program:
    """The vocabulary head forward and backward; with a teacher of the same width and its KL."""
    cfg, shape = HeadConfig(mesh=layout.mesh), (tokens // 512, 512)

    def per_token(stats: TokenStats, weight: Any) -> tuple[jax.Array, None]:
        total = stats.entropy - stats.logp
        if stats.reverse_kl is not None:
            total += stats.reverse_kl
        return jnp.sum(weight * total), None

    def loss(hidden: Any, matrix: Any, action: Any, their: TeacherHead | None) -> jax.Array:
        weight, mask = jnp.full(shape, 1 / tokens), jnp.ones(shape, bool)
        return head_loss(
            hidden,
            matrix,
            weight,
            per_token=per_token,
            action=action,
            action_mask=mask,
            cfg=cfg,
            teacher=their,
        )[0]

    def make() -> tuple:
        states = jax.random.normal(random_key(), (*shape, width), dtype)
        matrix = 0.02 * jax.random.normal(random_key(), (vocab, width), dtype)
        action = jax.random.randint(random_key(), shape, 0, vocab)
        return states, matrix, action, TeacherHead(states, matrix) if teacher else None

    rows: Any = batch_sharding(layout.mesh)
    products = 4 if teacher else 3
    return Program(
        name="head",
        run=jax.jit(jax.value_and_grad(loss, (0, 1))),
        make=make,
        places=(rows, whole(layout), rows, TeacherHead(rows, whole(layout)) if teacher else None),
        mesh=layout.mesh,
        work=Work(2.0 * products * tokens * vocab * width),
    )
