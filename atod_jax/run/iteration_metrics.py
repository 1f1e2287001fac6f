"""The numbers of one iteration: losses, episodes, environments, seconds per phase."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from atod_jax.episodes.render import Renderer
from atod_jax.records import CUT, StopReason, Trajectory
from atod_jax.results.arrays import not_finite
from atod_jax.run.compiling import Compiling
from atod_jax.types import Mean, TrainState

LARGEST = 1e6  # weights of language models stay far below
PATIENCE, FOREIGN = 10, 2.0  # steps; nats a token, which runs that learn are far below by then


def finite_scalars(means: Sequence[dict[str, Mean]], step: int, out: Path) -> dict[str, float]:
    """The metrics of one iteration, fetched and pooled by name.

    Raises:
      FloatingPointError: the loss or the gradient is not finite.
    """
    pooled: dict[str, Mean] = {}
    for some in jax.device_get(means):
        pooled |= {name: pooled[name] + m if name in pooled else m for name, m in some.items()}
    scalars = {name: mean.value() for name, mean in pooled.items()}
    for name in ("loss/total", "update/grad_norm"):
        if not np.isfinite(scalars[name]):
            raise FloatingPointError(_diverged(f"{name}={scalars[name]}", step, out))
    return scalars


def require_finite(state: TrainState, step: int, out: Path) -> None:
    """Checks what an update has left, before it is saved or played with.

    Raises:
      FloatingPointError: a parameter or a moment of the optimiser is not finite, or a parameter is
        larger than that of any model.
    """
    found = not_finite(state.params, largest=LARGEST) + not_finite(state.opt_state)
    if found:
        what = f"{found[0]} is not finite, or beyond {LARGEST:g},"
        raise FloatingPointError(_diverged(what, step, out))


def _diverged(what: str, step: int, out: Path) -> str:
    names = [path.name for path in (out / "checkpoints").glob("[0-9]*")]
    saved = not all(name.endswith(".broken") for name in names)  # the last may be under way
    begin = f"`python -m atod_jax.export --checkpoint={out} --out=DIR` writes its last saved step"
    return (
        f"{what} after step {step}: training diverged; use a lower optim.lr or optim.clip_norm in "
        f"a new --workdir{f', where {begin}, to begin with as student.path' if saved else ''}"
    )


def iteration_scalars(
    trajectories: Sequence[Trajectory],
    renderer: Renderer,
    *,
    groups: int,
    counts: dict[str, float],
    clock: "Clock",
) -> dict[str, float]:
    """Everything of an iteration that is not of the loss: episodes, environments, seconds."""
    seconds = clock.scalars()
    env = env_scalars(trajectories, groups=groups, counts=counts, seconds=seconds)
    return rollout_scalars(trajectories, renderer.shortened) | seconds | env


def rollout_scalars(
    trajectories: Sequence[Trajectory],
    shortened: Callable[[np.ndarray], bool] = lambda prompt: False,
) -> dict[str, float]:
    """What the episodes of one iteration looked like from outside; `shortened` says which prompts
    have lost their beginning."""
    turns = [turn for t in trajectories for turn in t.turns if not turn.replayed]
    return {
        "rollout/success": float(np.mean([t.success for t in trajectories])),
        "rollout/score": float(np.mean([t.score for t in trajectories])),
        "rollout/prompt_too_long": float(
            np.mean([t.stop is StopReason.prompt_too_long for t in trajectories])
        ),
        "rollout/return": float(np.mean([t.total_reward for t in trajectories])),
        "rollout/turns": float(np.mean([len(t.turns) for t in trajectories])),
        "rollout/valid_actions": float(np.mean([turn.valid for turn in turns])),
        "rollout/cut": float(np.mean([turn.problem == CUT for turn in turns])),
        "rollout/shortened": float(np.mean([shortened(turn.prompt) for turn in turns])),
        "rollout/rows": float(len(turns)),
        "rollout/action_tokens": float(np.mean([len(turn.action) for turn in turns])),
        "rollout/prompt_tokens": float(np.mean([len(turn.prompt) for turn in turns])),
    }


def env_scalars(
    trajectories: Sequence[Trajectory],
    *,
    groups: int,
    counts: dict[str, float],
    seconds: dict[str, float],
) -> dict[str, float]:
    """What the environments of one iteration took, and how many of its groups they could not
    play."""
    return {
        "rollout/failed_groups": float(groups - len({t.group for t in trajectories})),
        "env/steps_per_second": counts["steps"] / seconds["seconds/rollout"],
        "env/seconds_waiting": counts["waited"],
        "env/share_of_step": counts["waited"] / seconds["seconds/step"],
        "env/restarts": counts["restarts"],
        "env/timeouts": counts["timeouts"],
    }


class Clock:
    """Seconds per phase of one iteration, and how many of all of them went into compiling."""

    def __init__(self, compiling: Compiling) -> None:
        self._last, self._laps, self._compiling = time.perf_counter(), {}, compiling
        compiling.take_seconds()  # those of an evaluation

    def lap(self, name: str) -> None:
        """Books the time since the last lap under `name`."""
        now = time.perf_counter()
        self._laps[f"seconds/{name}"] = now - self._last
        self._last = now

    def scalars(self) -> dict[str, float]:
        """The laps and their sum."""
        compiling = {"seconds/compiling": self._compiling.take_seconds()}
        return {**self._laps, "seconds/step": sum(self._laps.values()), **compiling}


class Judge:
    """A callable (step, scalars) -> what to say, once each, of a run that will not learn."""

    def __init__(self) -> None:
        self._idle = 0  # steps in a row without a signal

    def __call__(self, step: int, scalars: Mapping[str, float]) -> list[str]:
        self._idle = 0 if has_signal(scalars) else self._idle + 1
        return [text for text in (foreign_wording(step, scalars), no_signal(self._idle)) if text]


def foreign_wording(step: int, scalars: Mapping[str, float]) -> str:
    """What to say, once, of a student that its teacher still finds all but impossible after ten
    steps: where decisions differ the gap has fallen by then, where the wording does it has not."""
    gap = scalars.get("kl/token", 0.0)
    if step + 1 != PATIENCE or gap < FOREIGN:
        return ""
    return (
        f"after {PATIENCE} steps the teacher still gives a token of the student {gap:.1f} nats "
        "less than the student does (kl/token); it may not know how the student words things: "
        "supervise the student on the teacher's answers first, or choose another teacher"
    )


def has_signal(scalars: Mapping[str, float]) -> bool:
    """Whether a step had anything to learn from: without a teacher and with no reward that differs
    an entropy bonus still has a gradient, which only makes the student less sure."""
    silent = "kl/token" not in scalars and scalars.get("rl/abs_mean") == 0
    return bool(scalars["update/grad_norm"]) and not silent


def no_signal(steps: int) -> str:
    """What to say of so many steps in a row without a signal."""
    if steps != PATIENCE:
        return ""
    return (
        f"for {PATIENCE} steps there was nothing to learn from: where all episodes of a task end "
        "alike (rollout/mixed_groups) a reward says nothing, and an entropy bonus or the "
        "optimizer's memory alone moves the weights; take easier tasks, larger groups, a student "
        "that solves some of them, or a teacher"
    )
