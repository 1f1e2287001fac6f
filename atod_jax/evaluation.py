"""Playing held-out tasks: every task once, with draws that depend only on its position.

Two policies evaluated here meet the same tasks with the same random numbers, so their outcomes can
be compared task by task.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from atod_jax import assembly, rollout
from atod_jax.assembly import Environment, Model
from atod_jax.intervals import EvalResult
from atod_jax.records import RolloutPlan, Task, Trajectory
from atod_jax.streams import Stream, key


def play(
    make_act: Callable[[jax.Array], rollout.Act],
    env: Environment,
    tasks: Sequence[Task],
    *,
    seed: int,
    slots: int,
    max_turns: int,
    between_turns: Callable[[], None] = lambda: None,
) -> list[Trajectory]:
    """Plays every task once, `slots` at a time; draws depend on (seed, position) only."""
    trajectories = []
    for start in range(0, len(tasks), slots):
        act = make_act(key(seed, Stream.evaluation, start))
        chunk = tasks[start : start + slots]
        trajectories += rollout.collect(
            act,
            env.renderer,
            env.pool,
            chunk,
            group_size=1,
            plan=RolloutPlan(max_turns=max_turns),
            between_turns=between_turns,
        )
    return trajectories


def summarize(trajectories: Sequence[Trajectory], temperature: float) -> EvalResult:
    """The outcome of an evaluation, one entry per task."""
    return EvalResult(
        temperature=temperature,
        task_ids=tuple(t.task.id for t in trajectories),
        kinds=tuple(t.task.kind for t in trajectories),
        success=np.asarray([t.success for t in trajectories]),
        turns=np.asarray([len(t.turns) for t in trajectories], np.int32),
        valid_rate=float(np.mean([turn.valid for t in trajectories for turn in t.turns])),
    )


class Evaluator:
    """Plays one split with any parameters of one model at one temperature."""

    def __init__(
        self,
        cfg: ConfigDict,
        model: Model,
        mesh: Mesh,
        env: Environment,
        *,
        temperature: float,
        stop: Callable[[], None] = lambda: None,
    ):
        self._policy = assembly.policy(cfg, model, mesh, temperature, cfg.eval.slots)
        self._cfg, self._env, self._stop = cfg, env, stop
        self.temperature = temperature

    def run(self, params: Any, tasks: Sequence[Task]) -> tuple[EvalResult, list[Trajectory]]:
        """Success and turns per task, and the episodes themselves."""
        trajectories = play(
            lambda k: assembly.actor(self._policy, params, k),
            self._env,
            tasks,
            seed=self._cfg.seed,
            slots=self._cfg.eval.slots,
            max_turns=self._cfg.env.max_turns,
            between_turns=self._stop,
        )
        return summarize(trajectories, self.temperature), trajectories
