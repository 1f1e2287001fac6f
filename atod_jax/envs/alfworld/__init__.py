"""ALFWorld as text: generated household games, game files, or the official folders.

The native engine plays them all; TextWorld, where installed, plays the official ones as well.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from atod_jax.envs import order, prepared
from atod_jax.envs.alfworld import expert, generate
from atod_jax.envs.alfworld.engine import Engine
from atod_jax.envs.alfworld.game import Game
from atod_jax.envs.alfworld.games import read_games
from atod_jax.envs.alfworld.generate import SIZES, SPLITS
from atod_jax.envs.alfworld.official import Trial, find_trials, read_trial
from atod_jax.envs.alfworld.prompts import TEMPLATES
from atod_jax.envs.base import FINITE, Environment, Expert, Observation, StepResult, TextEnv
from atod_jax.envs.lazy import LazyTasks
from atod_jax.options.field import SEED, check, one_of, option
from atod_jax.records import Task

GENERATED = {"train": 100_000, "valid_seen": 2048, "valid_unseen": 2048}  # games per split


@dataclasses.dataclass(frozen=True)
class Config:
    """Which games are played."""

    games: str = option(
        "",
        "a games.jsonl[.xz|.gz], a data set made of one, or an official folder; empty: generated",
    )
    engine: str = option(
        "native",
        "what plays the games; textworld takes official folders only, and is slow",
        one_of("native", "textworld"),
    )
    seed: int = option(0, "of the generated games", SEED)
    rooms: str = option(
        "small",
        "of generated games: small (8 receptacles, won within 20 turns) | large (12, within 40)",
        one_of(*SIZES),
    )
    win_reward: float = option(10.0, "paid on the winning step; every other step pays 0", FINITE)

    def __post_init__(self):
        check(self)


def make_task(game: Game | Trial) -> Task:
    """The task that plays `game`; its kind is the ALFWorld task type."""
    return Task(id=game.id, kind=game.task_type, payload=game)


def game_of(task: Task) -> Game:
    """The game of a task, read from its file where the payload only names that."""
    return read_trial(task.payload) if isinstance(task.payload, Trial) else task.payload


def tasks(cfg: Config, split: str) -> Sequence[Task]:
    """The tasks of a split: generated lazily, the games of a file that have a plan, or the
    playable games of an official folder. Generated ones take the task types in turn, others are
    in the order of `order.shuffled`.

    Raises:
      ValueError: unknown split, a split with no game in it, a damaged file, or an engine that
        cannot play such games.
      FileNotFoundError: nothing at `cfg.games`.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; use one of {', '.join(SPLITS)}")
    if cfg.games and Path(cfg.games).is_dir() and not prepared.is_prepared(cfg.games):
        return _folder_tasks(cfg.games, split)
    if cfg.engine == "textworld":
        raise ValueError(
            f"env.alfworld.engine='textworld' with env.alfworld.games={cfg.games!r}: it plays the"
            " game.tw-pddl files of an official data folder; name one, or set"
            " env.alfworld.engine=native"
        )
    if not cfg.games:
        build = functools.partial(_generated_task, split, seed=cfg.seed, size=SIZES[cfg.rooms])
        return LazyTasks(build, range(GENERATED[split]))
    return _file_tasks(cfg.games, split)


def _generated_task(split: str, number: int, *, seed: int, size: generate.Size) -> Task:
    return make_task(generate.generate(split, number, seed=seed, size=size))


@functools.cache
def _file_tasks(path: str, split: str) -> tuple[Task, ...]:
    found = [make_task(game) for game in read_games(path, split, planned_only=True)]
    if not found:
        raise ValueError(f"{path} has no game with a plan in split {split!r}; choose another split")
    try:
        return order.shuffled(found, lambda task: task.id)
    except ValueError as error:
        raise ValueError(f"{path}, split {split!r}: {error}") from None


@functools.cache
def _folder_tasks(path: str, split: str) -> tuple[Task, ...]:
    return tuple(make_task(trial) for trial in find_trials(path, split))


class AlfworldEnv:
    """One player over the native engine; every step after the win is refused."""

    def __init__(self, win_reward: float):
        self._win_reward = win_reward
        self._engine: Engine | None = None

    def reset(self, task: Task) -> Observation:
        """Starts the game of a task and shows its opening."""
        self._engine = Engine(game_of(task))
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


def make(cfg: Config, max_turns: int = 0) -> TextEnv:
    """A player for the tasks of `cfg`; it needs no turn limit.

    Raises:
      ValueError: `cfg.engine` is textworld and that is not installed.
    """
    if cfg.engine == "textworld":
        from atod_jax.envs.alfworld.textworld import TextworldEnv

        return TextworldEnv(cfg.win_reward)
    return AlfworldEnv(cfg.win_reward)


def demonstration(cfg: Config, task: Task, max_turns: int) -> tuple[str, ...]:
    """Winning commands: the plan that came with the game, else what the scripted expert does.

    Empty where neither wins within `max_turns`.
    """
    game = game_of(task)
    if game.plan is not None and len(game.plan) <= max_turns:
        return game.plan
    return expert.solve(game, max_turns=max_turns) or ()


ENVIRONMENT = Environment(
    Config=Config,
    splits=SPLITS,
    templates=TEMPLATES,
    tasks=tasks,
    make=make,
    demonstration=demonstration,
    expert=Expert(expert.act, expert.thought, expert.disturb),
    data=(
        "pip install alfworld==0.4.2 && alfworld-download, then"
        " --config.env.alfworld.games=$ALFWORLD_DATA; without it generated rooms are played"
    ),
)
