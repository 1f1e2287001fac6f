"""What every text environment and prompt template provides. No tokens here: text in, text out.

An environment is a module with `ENVIRONMENT = Environment(...)`: a file or folder beside this one,
an entry point of the group `atod_jax.envs`, or any module that `env.name` names.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from atod_jax.options.field import Check
from atod_jax.records import Task

FINITE = Check("must be a finite number", math.isfinite)


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
    problem: str = dataclasses.field(default="", compare=False)  # in a few words

    @property
    def reason(self) -> str:
        """What makes it invalid; "" where it is valid."""
        return "" if self.valid else self.problem or "invalid"


class Template(NamedTuple):
    """How a task is put to the model and how its answer is read back."""

    prompt: Callable[[Episode, int], str]  # (episode, history length) -> user message
    project: Callable[[str, Sequence[str]], Projection]  # (response, admissible commands)
    respond: Callable[[str, str], str]  # (command, thought or "") -> ideal response
    cut_left: bool = False  # a prompt that is too long loses its beginning; else the episode ends
    # constant text that prompts end with; only there may `<think>` become the token of that name
    instructions: str = ""


class Expert(NamedTuple):
    """A scripted player: what demonstrations, supervised turns and `play --player=expert` need."""

    act: Callable[[Episode], str]  # the command it would play
    # (episode, command) -> a short thought that leads to it
    thought: Callable[[Episode, str], str] = lambda episode, command: ""
    # (rng, admissible commands, absent=share about things that may not be there) -> a random one
    disturb: Callable[..., str] | None = None


class Environment(NamedTuple):
    """A family of tasks; the whole contract of an environment.

    The functions take the environment's own options first. They and `Config` are defined at the top
    of a module, since worker processes find them by name; nothing in it may import a library that
    uses JAX.
    """

    Config: type  # a frozen dataclass with a default for every field; options env.<name>.<field>
    splits: tuple[str, ...]  # the first is what people look at first
    templates: Mapping[str, Template]  # how an episode is shown to the model; the first is usual
    # (cfg, split); cheap to index, and the first n are a fair sample (`order.shuffled`)
    tasks: Callable[[Any, str], Sequence[Task]]
    make: Callable[[Any, int], TextEnv]  # (cfg, turn limit; 0: none): one player
    # (cfg, task, turn limit) -> commands that win it, () where none are known: what a curriculum
    # replays and what a teacher with privileged context reads. Optional.
    demonstration: Callable[[Any, Task, int], tuple[str, ...]] | None = None
    expert: Expert | None = None  # optional
    # task -> what would have been right, for people who have lost; optional
    answer: Callable[[Task], str] | None = None
    data: str = ""  # how to get and name the official data, for people; optional
