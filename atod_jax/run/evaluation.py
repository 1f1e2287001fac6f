"""Playing held-out tasks: every task once, with draws that depend only on its position.

Two policies evaluated here meet the same tasks with the same random numbers, so their outcomes can
be compared task by task.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from atod_jax.config.sections import Run
from atod_jax.envs.pool import BrokenEnvironment
from atod_jax.episodes.shared import play_shared
from atod_jax.records import SHORTENED, RolloutPlan, StopReason, Task, Trajectory
from atod_jax.results.intervals import EvalResult
from atod_jax.run.models import Model, to_sampling
from atod_jax.run.parts import Environment, policy
from atod_jax.streams import Stream, key

MOST_UNPLAYED = 0.05  # a larger share says more about the environment than about the policy


def check_played(result: EvalResult) -> EvalResult:
    """The result.

    Raises:
      BrokenEnvironment: more than MOST_UNPLAYED of the episodes could not be played.
    """
    if result.failed_share > MOST_UNPLAYED:
        raise BrokenEnvironment(
            f"evaluation: {len(result.failed)} of {result.episodes} episodes could not be played "
            f"(reasons above), more than {MOST_UNPLAYED:.0%}: no result is stored; mend the "
            "environment or its server, then run the same command again"
        )
    return result


def summarize(
    passes: Sequence[Sequence[Trajectory]],
    temperature: float,
    *,
    shortened: Callable[[np.ndarray], bool] = lambda prompt: False,
) -> EvalResult:
    """The outcome of an evaluation: one pass over the same tasks per sampling seed; `shortened`
    says which prompts have lost their beginning."""
    turns = [turn for one in passes for t in one for turn in t.turns]
    problems = Counter(turn.problem for turn in turns if turn.problem)
    problems += Counter({SHORTENED: sum(shortened(turn.prompt) for turn in turns)})

    def table(value: Callable[[Trajectory], float], dtype: type) -> np.ndarray:
        return np.asarray([[value(t) for t in one] for one in passes], dtype)

    return EvalResult(
        temperature=temperature,
        task_ids=tuple(t.task.id for t in passes[0]),
        kinds=tuple(t.task.kind for t in passes[0]),
        success=table(lambda t: t.success, bool),
        turns=table(lambda t: len(t.turns), np.int32),
        score=table(lambda t: t.score, np.float32),
        valid_rate=float(np.mean([turn.valid for turn in turns])) if turns else 0.0,
        stops=Counter(t.stop.value for one in passes for t in one),
        failed=tuple(t.task.id for one in passes for t in one if t.stop is StopReason.env_error),
        problems=problems,
    )


def _behind(before: int, ended: Callable[[int], None]) -> Callable[[int], None]:
    return lambda count: ended(before + count)


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
        slots = cfg.eval.slots
        self._policy = policy(cfg.sampling, model, temperature=temperature, episodes=slots)
        self._cfg, self._model, self._env, self._stop = cfg, model, env, stop
        self.temperature = temperature

    def run(
        self,
        params: Any,
        tasks: Sequence[Task],
        *,
        passes: int = 1,
        ended: Callable[[int], None] = lambda count: None,
    ) -> tuple[EvalResult, list[Trajectory]]:
        """The result of `passes` sampling seeds per task, and the episodes of the first; `ended`
        is told how many episodes have ended so far.

        Raises:
          BrokenEnvironment: too many episodes could not be played (`check_played`).
        """
        weights = to_sampling(self._model, params)
        played = [
            play_shared(
                self._policy.sampler(weights, key(self._cfg.seed + n, Stream.evaluation)),
                self._env.renderer,
                self._env.pool,
                tasks=tasks,
                group_size=1,
                plan=RolloutPlan(max_turns=self._env.max_turns),
                between_turns=self._stop,
                ended=_behind(n * len(tasks), ended),
                at_once=self._cfg.eval.slots,
            )
            for n in range(passes)
        ]
        shortened = self._env.renderer.shortened
        result = summarize(played, self.temperature, shortened=shortened)
        return check_played(result), played[0]
