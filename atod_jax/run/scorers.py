"""Who says what of a batch, the student and the teacher, and what is learnt from that."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Lowered

from atod_jax.algorithms.base import Step
from atod_jax.config.sections import Run
from atod_jax.core.fused import TeacherHead
from atod_jax.device.scoring import join, make_score, teacher_rows
from atod_jax.run.batch import Packed
from atod_jax.run.compiling import together
from atod_jax.run.models import Model
from atod_jax.run.parts import Algorithm, head_config
from atod_jax.sharding import batch_sharding, put
from atod_jax.types import TENSOR_AXIS, Rows, Signal, TokenStats


class BatchScorer:
    """Scores all rows of a batch, one micro-batch at a time, so that one shape compiles.

    Rows come from `mesh` and the statistics go there; the model may live on another one.
    """

    def __init__(
        self,
        model: Model,
        cfg: Run,
        mesh: Mesh,
        *,
        keep_states: bool = False,
        whose: str = "student",
    ):
        self._from, self._at = mesh, model.layout.mesh
        head = head_config(cfg, model.tokens, self._at)
        self._score = make_score(model.lm, head, keep_states=keep_states, whose=whose)
        self._compiled: set[tuple] = set()

    def __call__(self, params: Any, packed: Packed, rows: Rows | None = None) -> TokenStats:
        """The statistics of the batch; `rows` replaces what the model reads of it."""
        with jax.set_mesh(self._at):
            pieces, room = self._pieces(packed, rows), packed.room(self._at)
            scored = [self._score(params, piece, room=room) for piece in pieces]
            stats = join(scored, empty=len(packed.minibatch) - len(pieces))
        return stats if self._at == self._from else put(stats, batch_sharding(self._from))

    def new_programs(self, params: Any, packed: Packed, rows: Rows | None = None) -> list[Lowered]:
        """What this batch needs compiled; nothing where the same shapes were scored before."""
        room = packed.room(self._at)
        if (packed.form, room) in self._compiled:
            return []
        self._compiled.add((packed.form, room))
        with jax.set_mesh(self._at):
            return [self._score.lower(params, self._pieces(packed, rows)[0], room=room)]

    def _pieces(self, packed: Packed, rows: Rows | None) -> list[Rows]:
        """The micro-batches, where the model is; empty ones are left out."""
        rows = packed.batch.rows if rows is None else rows
        if self._at != self._from:
            rows = put(rows, batch_sharding(self._at))
        return packed.pieces(rows)


class TeacherScorer:
    """The teacher's statistics of a batch: a separate teacher, or the student itself given a
    privileged prompt."""

    def __init__(
        self,
        cfg: Run,
        mesh: Mesh,
        *,
        student: Model,
        teacher: Model | None,
        algorithm: Algorithm,
    ):
        context, self._needed = algorithm.teacher, algorithm.needs_teacher
        self._params = None if context.self_teacher or teacher is None else teacher.params
        model = student if context.self_teacher else teacher
        self._score = model and BatchScorer(
            model, cfg, mesh, keep_states=context.exact_kl, whose="teacher"
        )
        self._matrix = head_at(model, mesh) if model and context.exact_kl else None

    def __call__(self, step: int, student_params: Any, packed: Packed) -> TokenStats | None:
        """The statistics where the algorithm wants them at this step, else None."""
        if not self._needed(step) or self._score is None:
            return None
        return self._score(self._weights(student_params), packed, teacher_rows(packed.batch))

    def new_programs(self, step: int, student_params: Any, packed: Packed) -> list[Lowered]:
        """See `BatchScorer.new_programs`."""
        if not self._needed(step) or self._score is None:
            return []
        rows = teacher_rows(packed.batch)
        return self._score.new_programs(self._weights(student_params), packed, rows)

    def _weights(self, student_params: Any) -> Any:
        return student_params if self._params is None else self._params

    def head(self, stats: TokenStats | None) -> TeacherHead | None:
        """What an exact KL needs of the teacher; None where the loss holds none."""
        if stats is None or stats.states is None or self._matrix is None:
            return None
        return TeacherHead(stats.states, self._matrix)


class SignalMaker:
    """Has a batch scored, and asks the algorithm what to learn from it."""

    def __init__(
        self,
        cfg: Run,
        mesh: Mesh,
        *,
        student: Model,
        teacher: Model | None,
        algorithm: Algorithm,
    ):
        self._score, self._scores_student = (
            BatchScorer(student, cfg, mesh),
            algorithm.scores_student,
        )
        self._score_teacher = TeacherScorer(
            cfg, mesh, student=student, teacher=teacher, algorithm=algorithm
        )
        self._signal = _named("signal", algorithm.signal)
        self._start = student.params if cfg.loss.kl_coef else None  # for the KL to them

    def __call__(self, step: int, params: Any, *, packed: Packed) -> tuple[Step, Signal]:
        """(the batch with its statistics, the signal)."""
        ours = self._score.new_programs(params, packed) if self._scores_student else []
        together(ours + self._score_teacher.new_programs(step, params, packed))
        student: Any = self._score(params, packed) if self._scores_student else None
        teacher = self._score_teacher(step, params, packed)
        scored = Step(packed.batch, student, teacher, jnp.int32(step))
        signal = self._signal(scored)
        if self._start is not None:
            signal = signal.replace(reference_logp=self._score(self._start, packed).logp)
        return scored, signal

    def teacher_head(self, scored: Step) -> TeacherHead | None:
        """What an exact KL in the loss needs of the teacher; None where there is none."""
        return self._score_teacher.head(scored.teacher)


def head_at(model: Model, mesh: Mesh) -> jax.Array:
    """The model's output embedding where the student's head is computed, split in the same way."""
    with jax.set_mesh(model.layout.mesh):
        head = model.lm.head(model.params)
    return put(head, NamedSharding(mesh, PartitionSpec(TENSOR_AXIS)))


def require_teacher(cfg: Run, teacher: Model | None, algorithm: Algorithm) -> None:
    """An algorithm that distils needs someone to distil from.

    Raises:
      ValueError: it has no teacher.
    """
    own = algorithm.teacher.self_teacher or not algorithm.needs_teacher(0)
    demonstrates = algorithm.rollout_plan(0).prefix_by == "teacher"
    if teacher is None and (demonstrates or not own):
        raise ValueError(
            f"teacher.path='': algorithm.name={cfg.algorithm.name!r} needs a teacher; "
            "set --config.teacher.path to a Hugging Face folder or household/<name>"
        )


def _named(name: str, function: Callable[..., Any]) -> jax.stages.Wrapped:
    """The compiled function, under a name that says what it is."""

    def call(*args: Any) -> Any:
        return function(*args)

    call.__name__ = name
    return jax.jit(call)
