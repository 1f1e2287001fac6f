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
from atod_jax.types import RolloutPlan, StopReason, Task, Trajectory, Turn


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
    plan: RolloutPlan,
    demonstrations: Sequence[Sequence[str]] = (),
    contexts: Sequence[str] = (),
    between_turns: Callable[[], None] = lambda: None,
) -> list[Trajectory]:
    """Plays every task `group_size` times to its end, or to the horizon of the plan.

    Args:
      act: the policy; called once per turn with the prompts of the slots still playing.
      tasks: P tasks; slot b plays tasks[b // group_size], B = P * group_size slots in all.
      plan: the horizon in turns, and how much of a demonstration is replayed first.
      demonstrations: commands per task; the first plan.prefix(length) of them are history that the
        student finds when it begins. None at all: it begins at the start.
      contexts: what only the teacher reads, per task; none at all: what the student reads.
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
    if demonstrations:
        for b, slot in enumerate(slots):
            shown = demonstrations[slot.group]
            _replay(pool, slot, b, shown[: plan.prefix(len(shown))], plan.max_turns)
    for turn in range(plan.max_turns):
        live = [b for b, slot in enumerate(slots) if slot.stop is None]
        if not live:
            break
        between_turns()
        playing = [slots[b] for b in live]
        reads = renderer.prompts([slot.episode for slot in playing])
        teacher_reads: Sequence[np.ndarray | None] = [None] * len(live)
        if contexts:
            known = [contexts[slot.group] for slot in playing]
            teacher_reads = renderer.prompts([slot.episode for slot in playing], known)
        actions = act(reads, live, turn)
        _play_turn(renderer, pool, playing, live, reads, teacher_reads, actions, plan.max_turns)
    return [slot.trajectory() for slot in slots]


def _replay(
    pool: EnvPool, slot: Slot, number: int, commands: Sequence[str], max_turns: int
) -> None:
    """Plays commands for the student: turns without ids, which nothing is learnt from."""
    nothing = np.zeros(0, np.int32)
    for command in commands:
        if slot.stop is not None:
            return
        (result,) = pool.step([(number, command)])
        turn = Turn(
            prompt=nothing,
            action=nothing,
            logp=np.zeros(0, np.float32),
            observation=slot.episode.current.text,
            response=command,
            command=command,
            valid=True,
            reward=result.reward,
            replayed=True,
        )
        slot.record(turn, result, max_turns)


def _play_turn(
    renderer: Renderer,
    pool: EnvPool,
    playing: Sequence[Slot],
    numbers: Sequence[int],
    prompts: Sequence[np.ndarray],
    teacher_prompts: Sequence[np.ndarray | None],
    actions: Sequence[Action],
    max_turns: int,
) -> None:
    responses = [renderer.response(a.tokens) for a in actions]
    projected = [
        renderer.project(text, slot.episode.current.commands)
        for slot, text in zip(playing, responses)
    ]
    results = pool.step([(b, p.command) for b, p in zip(numbers, projected)])
    for slot, prompt, teacher_prompt, action, text, projection, result in zip(
        playing, prompts, teacher_prompts, actions, responses, projected, results
    ):
        record = Turn(
            prompt=prompt,
            action=np.asarray(action.tokens, np.int32),
            logp=np.asarray(action.logp, np.float32),
            observation=slot.episode.current.text,
            response=text,
            command=projection.command,
            valid=projection.valid,
            reward=result.reward,
            teacher_prompt=teacher_prompt,
        )
        slot.record(record, result, max_turns)
