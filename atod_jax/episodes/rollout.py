"""The environment loop: every episode moves on as soon as it can, until all have ended.

Knows no model and no device.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from atod_jax import texts
from atod_jax.envs.base import Episode, Observation, StepResult
from atod_jax.envs.pool import BrokenEnvironment, EnvPool, Failure
from atod_jax.episodes.render import Renderer
from atod_jax.records import (
    CUT,
    Action,
    Request,
    RolloutPlan,
    StopReason,
    Task,
    Trajectory,
    Turn,
)


class Sampler(Protocol):
    """Who acts; see `device.policy.Sampler`."""

    @property
    def slots(self) -> int:
        """Actions that are written side by side, at most."""
        ...

    def submit(self, requests: Sequence[Request]) -> None:
        """Prompts that want an action."""

    def advance(self, expected: int) -> list[tuple[int, Action]] | None:
        """(row, action) of some requests; None once no process expects anything."""


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
        return cls(number, task, group, Episode(past=(), current=_storable(first)))

    def record(self, turn: Turn, result: StepResult | Failure, max_turns: int) -> None:
        """Books a turn and what it led to."""
        if isinstance(result, Failure):
            self.stop = StopReason.env_error
            return
        self.turns.append(dataclasses.replace(turn, reward=result.reward))
        past = (*self.episode.past, (self.episode.current.text, turn.command))
        self.episode = Episode(past=past, current=_storable(result.observation))
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


def _storable(observation: Observation) -> Observation:
    """Without lone surrogates, which no record can hold."""
    return dataclasses.replace(observation, text=texts.whole(observation.text))


def collect(
    sampler: Sampler,
    renderer: Renderer,
    pool: EnvPool,
    *,
    tasks: Sequence[Task],
    group_size: int,
    plan: RolloutPlan,
    demonstrations: Sequence[Sequence[str]] = (),
    contexts: Sequence[str] = (),
    between_turns: Callable[[], None] = lambda: None,
    ended: Callable[[int], None] = lambda count: None,
    first_row: int = 0,
    at_once: int = 0,
) -> list[Trajectory]:
    """Plays every task `group_size` times to its end, or to the horizon of the plan.

    Nobody waits for anybody: an action that has ended goes to its environment while others are
    written, and the next prompt to the sampler as soon as the environment has answered.

    Args:
      sampler: gets the number of an episode (from `first_row` on) as `row`, and the number of the
        turns that it has sampled so far as `turn`.
      tasks: P tasks; episode b plays tasks[b // group_size], B = P * group_size episodes in all.
      plan: the horizon in turns, and how much of a demonstration is replayed first.
      demonstrations: commands per task; the first plan.prefix(length) of them are history that the
        student finds when it begins. None at all: it begins at the start.
      contexts: what only the teacher reads, per task; none at all: what the student reads.
      between_turns: called before every call of the sampler; may raise to abandon the rollout.
      ended: told, as often, how many episodes have ended so far.
      first_row: number of the first episode among those of all processes.
      at_once: episodes that are played side by side; 0: all.

    Returns:
      B trajectories in the order of the tasks; an episode that could not be played stops with
      env_error.

    Raises:
      ValueError: not one of the first prompts fits the model.
    """
    shown = [commands[: plan.prefix(len(commands))] for commands in demonstrations]
    games = [
        _Game(task, g, shown[g] if shown else (), contexts[g] if contexts else None)
        for g, task in enumerate(tasks)
        for _ in range(group_size)
    ]
    table = _Table(renderer, pool, games, max_turns=plan.max_turns, at_once=at_once or len(games))
    asked = 0  # prompts without an action
    while True:
        # half of the slots at least: a few prompts take as long as many
        table.gather(0 if asked else min(sampler.slots, table.playing) / 2)
        requests = table.requests(first_row)
        sampler.submit(requests)
        between_turns()
        ended(table.ended)
        actions = sampler.advance(table.playing)
        if actions is None:
            break
        asked += len(requests) - len(actions)
        table.answer([(row - first_row, action) for row, action in actions])
    slots = table.slots
    if slots and all(s.stop is StopReason.prompt_too_long and not s.turns for s in slots):
        raise ValueError(
            f"every first prompt is longer than {renderer.longest} tokens; add a longer length "
            "to sampling.prompt_buckets"
        )
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


class _Game(NamedTuple):
    """One episode before it begins."""

    task: Task
    group: int
    replay: Sequence[str]  # commands that are played for the student
    context: str | None  # what only the teacher reads


class _Prompt(NamedTuple):
    """What is asked in an episode."""

    game: int
    ids: np.ndarray
    teacher: np.ndarray | None


class _Table:
    """The episodes of one collection, each at its own pace, and the environments they play in."""

    def __init__(
        self,
        renderer: Renderer,
        pool: EnvPool,
        games: Sequence[_Game],
        *,
        max_turns: int,
        at_once: int,
    ):
        self._renderer, self._pool, self._games = renderer, pool, games
        self._max_turns = max_turns
        self._slots: dict[int, Slot] = {}  # of the games that have begun
        self._game: dict[int, int] = {}  # that an environment plays
        self._ready: list[_Prompt] = []  # to be asked
        self._asked: dict[int, _Prompt] = {}  # by game
        self._turns: dict[int, Turn] = {}  # by game; their commands are under way
        pool.clear()
        self._next = 0
        self._begin(range(min(at_once, len(games))))

    @property
    def playing(self) -> int:
        """Episodes that have begun and not ended."""
        return len(self._game)

    @property
    def ended(self) -> int:
        """Episodes that have ended."""
        return self._next - len(self._game)

    @property
    def slots(self) -> list[Slot]:
        """Those of all games, in their order."""
        return [self._slots[game] for game in range(len(self._games))]

    def gather(self, enough: float) -> None:
        """Takes what the environments have answered, and waits for as many prompts as `enough`."""
        while answers := self._pool.poll(wait=len(self._ready) < enough):
            self._move_on(answers)

    def requests(self, first_row: int) -> list[Request]:
        """The prompts that have become ready."""
        ready, self._ready = self._ready, []
        self._asked |= {prompt.game: prompt for prompt in ready}
        sampled = [len(self._slots[p.game].turns) - len(self._games[p.game].replay) for p in ready]
        return [Request(first_row + p.game, n, p.ids) for p, n in zip(ready, sampled, strict=True)]

    def answer(self, actions: Iterable[tuple[int, Action]]) -> None:
        """Sends the commands of (game, action) pairs off."""
        commands = []
        for game, action in actions:
            slot, turn = self._slots[game], self._turn(game, action)
            self._turns[game] = turn
            commands.append((slot.number, turn.command))
        self._pool.submit(commands)

    def _begin(self, environments: Iterable[int]) -> None:
        """The next games, in environments that are free."""
        waiting = range(self._next, len(self._games))
        begun = dict(zip(environments, waiting, strict=False))
        self._next += len(begun)
        self._game |= begun
        self._pool.start([(number, self._games[game].task) for number, game in begun.items()])

    def _move_on(self, answers: Sequence[tuple[int, Any]]) -> None:
        """Books (environment, answer) pairs and prepares what follows them."""
        standing, commands = [], []
        for number, answer in answers:
            slot = self._book(number, self._game[number], answer)
            if slot.stop is not None:
                continue
            if (command := self._replayed(self._game[number])) is not None:
                commands.append((number, command))
            else:
                standing.append(self._game[number])
        self._pool.submit(commands)
        self._render(standing)
        free = [number for number, _ in answers if self._slots[self._game[number]].stop]
        for number in free:
            del self._game[number]
        self._begin(free)

    def _book(self, number: int, game: int, answer: Observation | StepResult | Failure) -> Slot:
        if game in self._slots:
            slot = self._slots[game]
            assert not isinstance(answer, Observation)
            slot.record(self._turns.pop(game), answer, self._max_turns)
            return slot
        task, group = self._games[game][:2]
        assert not isinstance(answer, StepResult)
        return self._slots.setdefault(game, Slot.open(number, task, group=group, first=answer))

    def _replayed(self, game: int) -> str | None:
        """The next command that is played for the student; its turn has no ids, so nothing is
        learnt from it."""
        slot, replay = self._slots[game], self._games[game].replay
        if len(slot.turns) >= len(replay):
            return None
        command, nothing = replay[len(slot.turns)], np.zeros(0, np.int32)
        self._turns[game] = Turn(
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
        return command

    def _render(self, games: Sequence[int]) -> None:
        """The prompts of these games; an episode whose prompt does not fit ends here."""
        prompts = self._renderer.prompts([self._slots[game].episode for game in games])
        fitting = []
        for game, prompt in zip(games, prompts, strict=True):
            if self._renderer.fits(prompt):
                fitting.append((game, prompt))
            else:
                self._slots[game].stop = StopReason.prompt_too_long
        read = self._teacher_prompts([game for game, _ in fitting])
        self._ready += [_Prompt(game, ids, t) for (game, ids), t in zip(fitting, read, strict=True)]

    def _teacher_prompts(self, games: Sequence[int]) -> Sequence[np.ndarray | None]:
        contexts = [c for game in games if (c := self._games[game].context) is not None]
        if not contexts:
            return [None] * len(games)
        return self._renderer.prompts([self._slots[game].episode for game in games], contexts)

    def _turn(self, game: int, action: Action) -> Turn:
        prompt, current = self._asked.pop(game), self._slots[game].episode.current
        response = self._renderer.response(action.tokens)
        projection = self._renderer.project(response, current.commands)
        return Turn(
            prompt=prompt.ids,
            action=np.asarray(action.tokens, np.int32),
            logp=np.asarray(action.logp, np.float32),
            observation=current.text,
            response=response,
            command=projection.command,
            valid=projection.valid,
            reward=0.0,
            teacher_prompt=prompt.teacher,
            problem=CUT if action.cut else projection.reason,
        )
