"""ALFWorld as text: the native engine over generated household games or over game files."""

import collections.abc
import dataclasses
import functools
from collections.abc import Sequence
from typing import overload

from atod_jax.envs.alfworld import expert, generate
from atod_jax.envs.alfworld.engine import Engine
from atod_jax.envs.alfworld.game import Game
from atod_jax.envs.alfworld.games import read_games
from atod_jax.envs.alfworld.generate import SPLITS
from atod_jax.envs.alfworld.prompts import TEMPLATES
from atod_jax.envs.base import Observation, StepResult
from atod_jax.records import Task

__all__ = ["SPLITS", "TEMPLATES", "Config", "demonstration", "expert", "make", "tasks"]

GENERATED = {"train": 100_000, "valid_seen": 2048, "valid_unseen": 2048}


@dataclasses.dataclass(frozen=True)
class Config:
    """Which games are played."""

    games: str = ""  # path of a games.jsonl[.xz|.gz]; empty: generated games
    seed: int = 0  # of the generated games
    win_reward: float = 10.0  # paid once, on the winning step; every other step pays 0


class GeneratedTasks(collections.abc.Sequence[Task]):
    """The generated tasks of one split; an index builds its game anew, about a millisecond each."""

    def __init__(self, split: str, seed: int):
        self._split, self._seed = split, seed

    def __len__(self) -> int:
        return GENERATED[self._split]

    @overload
    def __getitem__(self, index: int) -> Task: ...

    @overload
    def __getitem__(self, index: slice) -> list[Task]: ...

    def __getitem__(self, index: int | slice) -> Task | list[Task]:
        if isinstance(index, slice):
            return [self._build(number) for number in range(len(self))[index]]
        return self._build(range(len(self))[index])  # negative indices too; raises IndexError

    def _build(self, number: int) -> Task:
        return make_task(generate.generate(self._split, number, seed=self._seed))


def make_task(game: Game) -> Task:
    """The task that plays `game`; its kind is the ALFWorld task type."""
    return Task(id=game.id, kind=game.task_type, payload=game)


def tasks(cfg: Config, split: str) -> Sequence[Task]:
    """The tasks of a split: generated lazily, or the games of `cfg.games` that have a plan.

    Raises:
        ValueError: unknown split, a split with no game in the file, or a damaged file.
        FileNotFoundError: no file at `cfg.games`.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; use one of {', '.join(SPLITS)}")
    if not cfg.games:
        return GeneratedTasks(split, cfg.seed)
    return _file_tasks(cfg.games, split)


@functools.cache
def _file_tasks(path: str, split: str) -> tuple[Task, ...]:
    found = tuple(make_task(game) for game in read_games(path, split, planned_only=True))
    if not found:
        raise ValueError(f"{path} has no game with a plan in split {split!r}; choose another split")
    return found


class AlfworldEnv:
    """One player over the native engine; every step after the win is refused."""

    def __init__(self, win_reward: float):
        self._win_reward = win_reward
        self._engine: Engine | None = None

    def reset(self, task: Task) -> Observation:
        """Starts the game in `task.payload` and shows its opening."""
        self._engine = Engine(task.payload)
        text, commands = self._engine.reset()
        return Observation(text, commands)

    def step(self, command: str) -> StepResult:
        """Plays one command; reward is `win_reward` on the winning step, else 0.

        Raises:
            ValueError: no game is running (before `reset`, after the win or after `close`).
        """
        if self._engine is None:
            raise ValueError(f"step({command!r}) without a running game; call reset(task) first")
        text, commands, won = self._engine.step(command)
        if won:
            self._engine = None
        reward = self._win_reward if won else 0.0
        return StepResult(Observation(text, commands), reward, done=won, won=won)

    def close(self) -> None:
        """Ends the game, if one runs."""
        self._engine = None


def make(cfg: Config) -> AlfworldEnv:
    """A player for the tasks of `cfg`."""
    return AlfworldEnv(cfg.win_reward)


def demonstration(cfg: Config, task: Task, max_turns: int) -> tuple[str, ...]:
    """Winning commands: the plan that came with the game, else what the scripted expert does.

    Empty where neither wins within `max_turns`.
    """
    game = task.payload
    if game.plan is not None and len(game.plan) <= max_turns:
        return game.plan
    return expert.solve(game, max_turns=max_turns) or ()
