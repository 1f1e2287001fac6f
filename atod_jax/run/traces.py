"""What models say of episodes, turn by turn and token by token, for people who read them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from atod_jax.algorithms.base import Step
from atod_jax.config.sections import Run
from atod_jax.core.tdur import turn_signals
from atod_jax.device.scoring import make_likeliest, teacher_rows
from atod_jax.records import Instead, Trace, Trajectory
from atod_jax.run.batch import Packed, pack
from atod_jax.run.models import Model
from atod_jax.run.parts import Algorithm, head_config
from atod_jax.run.scorers import BatchScorer, head_at
from atod_jax.sharding import to_host
from atod_jax.types import Signal

CHOICES = 4  # of the teacher at a token
TOKENS = 3  # of a turn at which they are asked for, at most
DISAGREE = 0.5  # nats between student and teacher from which they are
AT_ONCE = 64  # tokens whose logits exist at a time
RowTable = Callable[[Step], dict[str, np.ndarray]]


def make_row_table(algorithm: Algorithm) -> RowTable:
    """step -> d and h of every row [N], nats, and w where the algorithm weighs a teacher's signal;
    nothing where there is no teacher."""

    @jax.jit
    def compute(step: Step) -> dict[str, jax.Array]:
        assert step.teacher is not None
        mask = step.batch.rows.action_mask
        d, h = turn_signals(step.student.logp, step.teacher.logp, action_mask=mask)
        weights = algorithm.turn_weights
        return {"d": d, "h": h} | ({"w": weights(step)} if weights else {})

    def table(step: Step) -> dict[str, np.ndarray]:
        if step.teacher is None:
            return {}
        return {name: to_host(x) for name, x in compute(step).items()}

    return table


def traces_of(
    table: RowTable,
    packed: Packed,
    trajectories: Sequence[Trajectory],
    *,
    scored: Step,
    signal: Signal | None = None,
) -> list[Trace]:
    """Of every episode of a batch: d, h and w of its turns; for its tokens the log-probabilities of
    student and teacher, the student's entropy, and with a signal the advantage and the teacher's
    part of it."""
    streams = {
        "student": scored.student and scored.student.logp,
        "teacher": scored.teacher and scored.teacher.logp,
        "entropy": scored.student and scored.student.entropy,
        "advantage": signal and signal.advantage,
        "distill": signal and signal.distill,
    }
    known = {name: to_host(x) for name, x in streams.items() if x is not None}
    turns = packed.by_turn(table(scored), trajectories)
    return list(map(Trace, turns, packed.by_token(known, trajectories)))


class Tracer:
    """Has finished episodes scored by student and teacher, and asks what the teacher would rather
    have said."""

    def __init__(
        self, cfg: Run, mesh: Mesh, *, student: Model, teacher: Model, algorithm: Algorithm
    ):
        self._cfg, self._student, self._teacher = cfg, student, teacher
        self._score_student = BatchScorer(student, cfg, mesh)
        self._score_teacher = BatchScorer(teacher, cfg, mesh, keep_states=True, whose="teacher")
        self.row_table = make_row_table(algorithm)
        self._matrix = head_at(teacher, mesh)
        self._likeliest = make_likeliest(head_config(cfg, teacher.tokens, mesh), CHOICES)

    def __call__(
        self, params: Any, trajectories: Sequence[Trajectory], *, step: int = 0
    ) -> list[Trace]:
        """A trace per trajectory; of one without turns an empty one.

        Args:
          params: of the student.
          trajectories: finished episodes.
          step: number of the training step.
        """
        if not any(len(turn.action) for t in trajectories for turn in t.turns):
            return [Trace() for _ in trajectories]
        packed = pack(self._cfg, trajectories, student=self._student, step=0)
        student = self._score_student(params, packed)
        rows = teacher_rows(packed.batch)
        teacher = self._score_teacher(self._teacher.params, packed, rows)
        scored = Step(packed.batch, student, teacher, step)
        found = traces_of(self.row_table, packed, trajectories, scored=scored)
        gap = np.where(packed.mask, np.abs(to_host(student.logp) - to_host(teacher.logp)), 0)
        instead = self._instead(packed, teacher.states, gap=gap)
        return [
            trace._replace(instead=[instead.get((b, k), []) for k in range(len(t.turns))])
            for b, (t, trace) in enumerate(zip(trajectories, found, strict=True))
        ]

    def _instead(
        self, packed: Packed, states: jax.Array | None, *, gap: np.ndarray
    ) -> dict[tuple[int, int], list[Instead]]:
        """By episode and turn, the teacher's likeliest ids at the tokens [N, R] of the largest
        gap."""
        most = np.argsort(-gap, axis=1, kind="stable")[:, :TOKENS]
        at = [(n, r) for n in range(len(gap)) for r in sorted(most[n]) if gap[n, r] >= DISAGREE]
        found: dict[tuple[int, int], list[Instead]] = {}
        room = packed.room(packed.mesh)
        for first in range(0, len(at), AT_ONCE):
            some = at[first : first + AT_ONCE]
            table = jnp.asarray(some + some[-1:] * (AT_ONCE - len(some)), jnp.int32)
            logp, ids = self._likeliest(self._matrix, states, packed.batch.rows, table, room=room)
            for (n, r), values, names in zip(some, to_host(logp), to_host(ids), strict=False):
                choices = tuple(
                    (int(i), float(x)) for i, x in zip(names, values, strict=True) if x > -math.inf
                )
                turn = (int(packed.traj[n]), int(packed.turn[n]))
                found.setdefault(turn, []).append(Instead(int(r), choices))
        return found


def surprise(trace: Trace) -> float:
    """The largest disagreement of student and teacher in a turn, nats; 0 where it is not known."""
    return max((x for x in trace.turns.get("d", ()) if math.isfinite(x)), default=0.0)


def to_show(
    episodes: Sequence[Trajectory], count: int, surprises: Sequence[float] | None = None
) -> list[int]:
    """Which episodes to read: failures and successes in turn, the more surprising ones first."""
    rank = [0.0] * len(episodes) if surprises is None else surprises
    order = sorted(range(len(episodes)), key=lambda i: -rank[i])
    lost, won = ([i for i in order if episodes[i].success is x] for x in (False, True))
    pairs = [i for pair in zip(lost, won, strict=False) for i in pair]
    rest = lost[len(won) :] + won[len(lost) :]
    return (pairs + rest)[:count]
