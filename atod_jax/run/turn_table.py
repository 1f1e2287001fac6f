"""Disagreement d, uncertainty h and weight w of every turn, for people who read episodes."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from atod_jax.algorithms.base import Step
from atod_jax.config.sections import Run
from atod_jax.core.tdur import turn_signals
from atod_jax.records import Trajectory
from atod_jax.run.batch import pack
from atod_jax.run.models import Model
from atod_jax.run.parts import Algorithm
from atod_jax.run.scorers import BatchScorer
from atod_jax.sharding import to_host

RowTable = Callable[[Step], dict[str, np.ndarray]]


def make_row_table(algorithm: Algorithm) -> RowTable:
    """step -> d and h of every row [N], nats, and w where the algorithm weighs a teacher's
    signal."""

    @jax.jit
    def compute(step: Step) -> dict[str, jax.Array]:
        assert step.teacher is not None
        mask = step.batch.rows.action_mask
        d, h = turn_signals(step.student.logp, step.teacher.logp, action_mask=mask)
        weights = algorithm.turn_weights
        return {"d": d, "h": h} | ({"w": weights(step)} if weights else {})

    return lambda step: {name: to_host(x) for name, x in compute(step).items()}


class TurnTable:
    """d, h and w of finished episodes, which student and teacher score for it."""

    def __init__(
        self, cfg: Run, mesh: Mesh, *, student: Model, teacher: Model, algorithm: Algorithm
    ):
        self._cfg, self._student, self._teacher = cfg, student, teacher
        self._scorers = (
            BatchScorer(student, cfg, mesh),
            BatchScorer(teacher, cfg, mesh, whose="teacher"),
        )
        self._table = make_row_table(algorithm)

    def __call__(
        self, params: Any, trajectories: Sequence[Trajectory]
    ) -> list[dict[str, list[float]]]:
        """Per trajectory {"d": [...], "h": [...], "w": [...]}, one per turn, nan if replayed; of
        episodes without turns nothing."""
        if not any(trajectory.turns for trajectory in trajectories):
            return [{} for _ in trajectories]
        packed = pack(self._cfg, trajectories, student=self._student, step=0)
        score_student, score_teacher = self._scorers
        student = score_student(params, packed)
        teacher = score_teacher(self._teacher.params, packed)
        rows = self._table(Step(packed.batch, student, teacher, 0))
        return packed.by_turn(rows, trajectories)
