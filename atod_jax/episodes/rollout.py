"""The environment loop: generate <-> step until every episode has ended.

Knows no model and no device.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from atod_jax.envs.base import Episode, Observation, StepResult
from atod_jax.envs.pool import BrokenEnvironment, EnvPool, Failure
from atod_jax.episodes.render import Renderer
from atod_jax.records import RolloutPlan, StopReason, Task, Trajectory, Turn


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

    number: int  # of its environment in the pool
    task: Task
    group: int
    episode: Episode
    turns: list[Turn] = dataclasses.field(default_factory=list)
    stop: StopReason | None = None
    won: bool = False
    score: float | None = None

    @classmethod
    def open(cls, number: int, task: Task, *, group: int, first: Observation | Failure) -> "Slot":
        """An episode at its beginning."""
        if isinstance(first, Failure):
            nothing = Episode(past=(), current=Observation(""))
            return cls(number, task, group, nothing, stop=StopReason.env_error)
        return cls(number, task, group, Episode(past=(), current=first))

    def record(self, turn: Turn, result: StepResult | Failure, max_turns: int) -> None:
        """Books a turn and what it led to."""
        if isinstance(result, Failure):
            self.stop = StopReason.env_error
            return
        self.turns.append(dataclasses.replace(turn, reward=result.reward))
        past = (*self.episode.past, (self.episode.current.text, turn.command))
        self.episode = Episode(past=past, current=result.observation)
        self.won, self.score = result.won, result.score
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
            score=float(self.won) if self.score is None else self.score,
        )


def collect(
    act: Act,
    renderer: Renderer,
    pool: EnvPool,
    *,
    tasks: Sequence[Task],
    group_size: int,
    plan: RolloutPlan,
    demonstrations: Sequence[Sequence[str]] = (),
    contexts: Sequence[str] = (),
    between_turns: Callable[[], None] = lambda: None,
    anyone: Callable[[bool], bool] = bool,
) -> list[Trajectory]:
    """Plays every task `group_size` times to its end, or to the horizon of the plan.

    Where the pool has processes, one half of the slots steps while the policy acts for the other.

    Args:
      act: the policy; called once per turn and half with the prompts of the slots still playing.
      tasks: P tasks; slot b plays tasks[b // group_size], B = P * group_size slots in all.
      plan: the horizon in turns, and how much of a demonstration is replayed first.
      demonstrations: commands per task; the first plan.prefix(length) of them are history that the
        student finds when it begins. None at all: it begins at the start.
      contexts: what only the teacher reads, per task; none at all: what the student reads.
      between_turns: called before every turn; may raise to abandon the rollout.
      anyone: whether a flag is set in any of the processes that play side by side. They call `act`
        equally often, those whose episodes have ended with no prompts.

    Returns:
      B trajectories in slot order; an episode that could not be played stops with env_error.

    Raises:
      ValueError: not one of the first prompts fits the model.
    """
    repeated = [task for task in tasks for _ in range(group_size)]
    slots = [
        Slot.open(b, task, group=b // group_size, first=first)
        for b, (task, first) in enumerate(zip(repeated, pool.reset(repeated), strict=True))
    ]
    if demonstrations:
        for slot in slots:
            shown = demonstrations[slot.group]
            _replay(pool, slot, shown[: plan.prefix(len(shown))], plan.max_turns)
    half = -(-len(slots) // 2)
    parts = [slots[:half], slots[half:]] if pool.overlaps else [slots]
    lanes = [_Lane(act, renderer, pool, part, plan.max_turns, contexts) for part in parts]
    for turn in range(plan.max_turns):
        for lane in lanes:
            lane.settle()
            if anyone(bool(lane.playing())):
                between_turns()
                lane.begin(turn)
        if turn == 0 and slots and all(slot.stop is StopReason.prompt_too_long for slot in slots):
            raise ValueError(
                f"every first prompt is longer than {renderer.longest} tokens; add a longer length "
                "to sampling.prompt_buckets"
            )
    for lane in lanes:
        lane.settle()
    return [slot.trajectory() for slot in slots]


def whole_groups(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Leaves out every group with an episode that the environment could not play.

    Raises:
      BrokenEnvironment: more than half of the groups would go.
    """
    broken = {t.group for t in trajectories if t.stop is StopReason.env_error}
    groups = {t.group for t in trajectories}
    if 2 * len(broken) > len(groups):
        raise BrokenEnvironment(
            f"the environment failed in {len(broken)} of {len(groups)} groups (reasons above); "
            "`python -m atod_jax.doctor` looks at the environments"
        )
    return [t for t in trajectories if t.group not in broken]


class _Lane:
    """Slots that take their turns together: act, send the commands off, settle the results."""

    def __init__(
        self,
        act: Act,
        renderer: Renderer,
        pool: EnvPool,
        slots: Sequence[Slot],
        max_turns: int,
        contexts: Sequence[str],
    ):
        self._act, self._renderer, self._pool = act, renderer, pool
        self._slots, self._max_turns, self._contexts = slots, max_turns, contexts
        self._under_way: tuple[int, list[tuple[Slot, Turn]]] | None = None

    def playing(self) -> list[Slot]:
        """The slots whose episodes have not ended."""
        return [slot for slot in self._slots if slot.stop is None]

    def begin(self, turn: int) -> None:
        """The policy answers; its commands go to the environments."""
        slots, prompts = self._readable(self.playing())
        teacher_prompts: Sequence[np.ndarray | None] = [None] * len(slots)
        if self._contexts:
            known = [self._contexts[slot.group] for slot in slots]
            teacher_prompts = self._renderer.prompts([s.episode for s in slots], known)
        actions = self._act(prompts, [slot.number for slot in slots], turn)
        turns = [
            self._turn(slot, prompt, teacher_prompt, action)
            for slot, prompt, teacher_prompt, action in zip(
                slots, prompts, teacher_prompts, actions, strict=True
            )
        ]
        pairs = list(zip(slots, turns, strict=True))
        self._under_way = self._pool.submit([(s.number, t.command) for s, t in pairs]), pairs

    def settle(self) -> None:
        """Books what the commands under way have led to."""
        if self._under_way is None:
            return
        ticket, turns = self._under_way
        self._under_way = None
        for (slot, turn), result in zip(turns, self._pool.results(ticket), strict=True):
            slot.record(turn, result, self._max_turns)

    def _readable(self, slots: list[Slot]) -> tuple[list[Slot], list[np.ndarray]]:
        """The slots whose prompts fit, with these; the episodes of the others end here."""
        fitting = []
        prompts = self._renderer.prompts([slot.episode for slot in slots])
        for slot, prompt in zip(slots, prompts, strict=True):
            if self._renderer.fits(prompt):
                fitting.append((slot, prompt))
            else:
                slot.stop = StopReason.prompt_too_long
        return [slot for slot, _ in fitting], [prompt for _, prompt in fitting]

    def _turn(
        self, slot: Slot, prompt: np.ndarray, teacher_prompt: np.ndarray | None, action: Action
    ) -> Turn:
        response = self._renderer.response(action.tokens)
        current = slot.episode.current
        projection = self._renderer.project(response, current.commands)
        return Turn(
            prompt=prompt,
            action=np.asarray(action.tokens, np.int32),
            logp=np.asarray(action.logp, np.float32),
            observation=current.text,
            response=response,
            command=projection.command,
            valid=projection.valid,
            reward=0.0,
            teacher_prompt=teacher_prompt,
        )


def _replay(pool: EnvPool, slot: Slot, commands: Sequence[str], max_turns: int) -> None:
    """Plays commands for the student: turns without ids, which nothing is learnt from."""
    nothing = np.zeros(0, np.int32)
    for command in commands:
        if slot.stop is not None:
            return
        (result,) = pool.step([(slot.number, command)])
        turn = Turn(
            prompt=nothing,
            action=nothing,
            logp=np.zeros(0, np.float32),
            observation=slot.episode.current.text,
            response=command,
            command=command,
            valid=True,
            reward=0.0,
            replayed=True,
        )
        slot.record(turn, result, max_turns)
