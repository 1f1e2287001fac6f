"""Playing held-out tasks: every task once, with draws that depend only on its position.

Two policies evaluated here meet the same tasks with the same random numbers, so their outcomes can
be compared task by task.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from atod_jax.config.sections import Run
from atod_jax.episodes.rollout import Act
from atod_jax.episodes.shared import play_shared
from atod_jax.records import RolloutPlan, StopReason, Task, Trajectory
from atod_jax.results.intervals import EvalResult
from atod_jax.run.models import Model, to_sampling
from atod_jax.run.parts import Environment, actor, policy
from atod_jax.streams import Stream, key


def play(
    make_act: Callable[[jax.Array], Act],
    env: Environment,
    tasks: Sequence[Task],
    *,
    seed: int,
    slots: int,
    between_turns: Callable[[], None] = lambda: None,
) -> list[Trajectory]:
    """Plays every task once, `slots` at a time; draws depend on (seed, slots, position) only."""
    trajectories = []
    for start in range(0, len(tasks), slots):
        act = make_act(key(seed, Stream.evaluation, start))
        chunk = tasks[start : start + slots]
        trajectories += play_shared(
            act,
            env.renderer,
            env.pool,
            tasks=chunk,
            group_size=1,
            plan=RolloutPlan(max_turns=env.max_turns),
            between_turns=between_turns,
        )
    return trajectories


def summarize(passes: Sequence[Sequence[Trajectory]], temperature: float) -> EvalResult:
    """The outcome of an evaluation: one pass over the same tasks per sampling seed."""
    turns = [turn.valid for one in passes for t in one for turn in t.turns]

    def table(value: Callable[[Trajectory], float], dtype: type) -> np.ndarray:
        return np.asarray([[value(t) for t in one] for one in passes], dtype)

    return EvalResult(
        temperature=temperature,
        task_ids=tuple(t.task.id for t in passes[0]),
        kinds=tuple(t.task.kind for t in passes[0]),
        success=table(lambda t: t.success, bool),
        turns=table(lambda t: len(t.turns), np.int32),
        score=table(lambda t: t.score, np.float32),
        valid_rate=float(np.mean(turns)) if turns else 0.0,
        stops=Counter(t.stop.value for one in passes for t in one),
        failed=tuple(t.task.id for one in passes for t in one if t.stop is StopReason.env_error),
    )


class Evaluator:
    """Plays one split with any parameters of one model at one temperature."""

    def __init__(
        self,
        cfg: Run,
        model: Model,
        env: Environment,
        *,
        temperature: float,
        stop: Callable[[], None] = lambda: None,
    ):
        self._policy = policy(cfg.sampling, model, temperature=temperature, max_rows=cfg.eval.slots)
        self._cfg, self._model, self._env, self._stop = cfg, model, env, stop
        self.temperature = temperature

    def run(
        self, params: Any, tasks: Sequence[Task], *, passes: int = 1
    ) -> tuple[EvalResult, list[Trajectory]]:
        """The result of `passes` sampling seeds per task, and the episodes of the first."""
        params = to_sampling(self._model, params)
        played = [
            play(
                lambda k: actor(self._policy, params, k, slots=self._cfg.eval.slots),
                self._env,
                tasks,
                seed=self._cfg.seed + n,
                slots=self._cfg.eval.slots,
                between_turns=self._stop,
            )
            for n in range(passes)
        ]
        return summarize(played, self.temperature), played[0]
