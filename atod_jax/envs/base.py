"""What every text environment and prompt template provides. No tokens here: text in, text out.

An environment is a module or package `atod_jax/envs/<name>` that exports
    tasks(cfg, split) -> Sequence[Task]     the tasks of a split, cheap to index
    make(cfg) -> TextEnv                    a player for one task at a time
    TEMPLATES: dict[str, Template]          how an episode is shown to the model
    SPLITS: tuple[str, ...]
    DATA: str                               how to get and name the official data, for people
    demonstration(cfg, task, max_turns) -> tuple[str, ...]
        commands with which an expert wins the task, () where none is known: what a curriculum
        replays and what a teacher with privileged context reads
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from atod_jax.records import Task


@dataclasses.dataclass(frozen=True)
class Observation:
    """What the environment shows."""

    text: str
    commands: tuple[str, ...] = ()  # admissible actions, in the order they are shown


@dataclasses.dataclass(frozen=True)
class StepResult:
    """What one command led to."""

    observation: Observation
    reward: float
    done: bool
    won: bool
    score: float | None = None  # graded outcome where there is one (WebShop's); None: won or not


class TextEnv(Protocol):
    """One player. `reset` may be called again with another task; `close` is idempotent."""

    def reset(self, task: Task) -> Observation: ...

    def step(self, command: str) -> StepResult: ...

    def close(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class Episode:
    """All a prompt may be built from: past (observation shown, command sent) pairs, the present."""

    past: tuple[tuple[str, str], ...]
    current: Observation

    @property
    def opening(self) -> str:
        """The first observation, which states the task."""
        return self.past[0][0] if self.past else self.current.text


@dataclasses.dataclass(frozen=True)
class Projection:
    """A model response turned into a command; `valid` feeds the invalid-action penalty."""

    command: str
    valid: bool


class Template(NamedTuple):
    """How a task is put to the model and how its answer is read back."""

    prompt: Callable[[Episode, int], str]  # (episode, history length) -> user message
    project: Callable[[str, Sequence[str]], Projection]  # (response, admissible commands)
    respond: Callable[[str, str], str]  # (command, thought or "") -> ideal response
    cut_left: bool = False  # a prompt that is too long loses its beginning; else the episode ends
