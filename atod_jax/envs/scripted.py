"""What the scripted players of the environments share."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from atod_jax.envs.base import Episode, TextEnv
from atod_jax.records import Task

T = TypeVar("T")


class Decision(NamedTuple):
    """A command and the reasoning that leads to it."""

    command: str
    thought: str


class Uniform(Protocol):
    """A source of uniform numbers in [0, 1): Python's `random.Random` or a NumPy generator."""

    def random(self) -> float: ...


def pick(rng: Uniform, options: Sequence[T]) -> T:
    """One of the options, drawn uniformly."""
    return options[int(rng.random() * len(options))]


def solve(
    env: TextEnv, act: Callable[[Episode], str], *, task: Task, max_turns: int
) -> tuple[str, ...]:
    """The commands with which `act` wins the task, () where it does not within `max_turns`."""
    now = env.reset(task)
    past: tuple[tuple[str, str], ...] = ()
    for _ in range(max_turns):
        command = act(Episode(past, now))
        past = (*past, (now.text, command))
        result = env.step(command)
        now = result.observation
        if result.done:
            return tuple(sent for _, sent in past) if result.won else ()
    return ()
