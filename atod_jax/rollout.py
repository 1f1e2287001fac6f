"""The environment loop: generate <-> step until every episode has ended.

Knows no model and no device.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from atod_jax.envs.base import Episode, StepResult
from atod_jax.envs.pool import EnvPool
from atod_jax.render import Renderer
from atod_jax.types import StopReason, Task, Trajectory, Turn


class Action(Protocol):
    """What an actor returns per prompt: sampled ids, end token included, and log-probabilities."""

    @property
    def tokens(self) -> np.ndarray: ...

    @property
    def logp(self) -> np.ndarray: ...


# (prompts of the live slots, their slot numbers, turn index) -> one action per prompt
Act = Callable[[list[np.ndarray], list[int], int], Sequence[Action]]


@dataclasses.dataclass
class Slot:
    """One episode being played; also used by the expert's loop in demos.py."""

    task: Task
    group: int
    episode: Episode
    turns: list[Turn] = dataclasses.field(default_factory=list)
    stop: StopReason | None = None
    won: bool = False

    def record(self, turn: Turn, result: StepResult, max_turns: int) -> None:
        """Books a turn and what it led to."""
        self.turns.append(turn)
        past = (*self.episode.past, (self.episode.current.text, turn.command))
        self.episode = Episode(past=past, current=result.observation)
        self.won = result.won
        if result.done:
            self.stop = StopReason.done
        elif len(self.turns) >= max_turns:
            self.stop = StopReason.max_turns

    def trajectory(self) -> Trajectory:
        """The finished episode."""
        assert self.stop is not None
        return Trajectory(
            task=self.task,
            group=self.group,
            turns=tuple(self.turns),
            success=self.won,
            stop=self.stop,
        )


def collect(
    act: Act,
    renderer: Renderer,
    pool: EnvPool,
    tasks: Sequence[Task],
    *,
    group_size: int,
    max_turns: int,
    between_turns: Callable[[], None] = lambda: None,
) -> list[Trajectory]:
    """Plays every task `group_size` times to its end.

    Args:
      act: the policy; called once per turn with the prompts of the slots still playing.
      tasks: P tasks; slot b plays tasks[b // group_size], B = P * group_size slots in all.
      between_turns: called before every turn; may raise to abandon the rollout.
    Returns:
      B trajectories in slot order.
    """
    repeated = [task for task in tasks for _ in range(group_size)]
    first = pool.reset(repeated)
    slots = [
        Slot(task=task, group=b // group_size, episode=Episode(past=(), current=first[b]))
        for b, task in enumerate(repeated)
    ]
    for turn in range(max_turns):
        live = [b for b, slot in enumerate(slots) if slot.stop is None]
        if not live:
            break
        between_turns()
        _play_turn(act, renderer, pool, slots, live, turn, max_turns)
    return [slot.trajectory() for slot in slots]


def _play_turn(
    act: Act,
    renderer: Renderer,
    pool: EnvPool,
    slots: list[Slot],
    live: list[int],
    turn: int,
    max_turns: int,
) -> None:
    prompts = renderer.prompts([slots[b].episode for b in live])
    actions = act(prompts, live, turn)
    responses = [renderer.response(a.tokens) for a in actions]
    projected = [
        renderer.project(text, slots[b].episode.current.commands)
        for b, text in zip(live, responses)
    ]
    results = pool.step([(b, p.command) for b, p in zip(live, projected)])
    for b, prompt, action, text, projection, result in zip(
        live, prompts, actions, responses, projected, results
    ):
        record = Turn(
            prompt=prompt,
            action=np.asarray(action.tokens, np.int32),
            logp=np.asarray(action.logp, np.float32),
            observation=slots[b].episode.current.text,
            response=text,
            command=projection.command,
            valid=projection.valid,
            reward=result.reward,
        )
        slots[b].record(record, result, max_turns)
