"""What the host keeps of playing: tasks, turns, trajectories. Plain Python and NumPy.

Environments and their worker processes see these records and no device code.
"""

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True)
class Task:
    """One problem to play. `kind` groups results; `payload` is the environment's business."""

    id: str
    kind: str
    payload: Any


class StopReason(enum.Enum):
    """Why an episode ended."""

    done = "done"  # the environment ended the episode
    max_turns = "max_turns"  # the turn limit of the rollout
    prompt_too_long = "prompt_too_long"  # the next prompt does not fit the longest bucket
    env_error = "env_error"  # the environment failed again and again; nothing was learnt here


# What can go wrong in a turn beside the kinds of invalid responses that templates name.
CUT = "cut by the token limit"
SHORTENED = "prompt without its beginning"


class Request(NamedTuple):
    """A prompt that waits for an action."""

    row: int  # of the episode: tells its draws from those of others that play beside it
    turn: int  # of the episode, from 0
    prompt: np.ndarray  # i32[p]


class Action(NamedTuple):
    """What was sampled for a prompt."""

    tokens: np.ndarray  # i32[a], the end token included when it was produced
    logp: np.ndarray  # f32[a]
    cut: bool = False  # by the token limit, before its end


@dataclasses.dataclass(frozen=True)
class Turn:
    """One model response. Token ids are exactly those the sampler saw and produced."""

    prompt: np.ndarray  # i32[p]
    action: np.ndarray  # i32[a], including the end-of-turn token when it was produced
    logp: np.ndarray  # f32[a], log-probability under the sampling policy
    observation: str  # what the environment showed before the action
    response: str  # decoded text of `action`
    command: str  # what was sent to the environment
    valid: bool  # the response parsed into an action (feeds the invalid-action penalty)
    reward: float
    teacher_prompt: np.ndarray | None = None  # i32[q]; what a teacher with privileged context reads
    replayed: bool = False  # played for the student: history without ids, never trained on
    problem: str = ""  # CUT, or what made the response invalid; "": nothing


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """One finished episode."""

    task: Task
    group: int  # global index of the task in this step's batch
    turns: tuple[Turn, ...]
    success: bool
    stop: StopReason
    score: float = 0.0  # graded outcome in [0, 1] where the environment has one, else success

    @property
    def total_reward(self) -> float:
        """The summed reward of its turns."""
        return float(sum(t.reward for t in self.turns))


class Speller(NamedTuple):
    """What ids say."""

    text: Callable[[np.ndarray], str]
    pieces: Callable[[np.ndarray], list[str]]  # a text per id


class Instead(NamedTuple):
    """What the teacher would rather have said at a token."""

    token: int  # its place in the action
    choices: tuple[tuple[int, float], ...]  # the likeliest ids with their log-probabilities, nats


class Trace(NamedTuple):
    """What models say of an episode that was played, and what was learnt from it. Nats."""

    turns: Mapping[str, Sequence[float]] = {}  # name -> a number per turn, nan where replayed
    tokens: Mapping[str, Sequence[np.ndarray]] = {}  # name -> f32[a] per turn, () where replayed
    instead: Sequence[Sequence[Instead]] = ()  # per turn, where it was asked for


@dataclasses.dataclass(frozen=True)
class RolloutPlan:
    """How far the episodes of one iteration go, and how much of them is played for the student.

    `prefix(length)` turns a demonstration of `length` turns into the number of its first turns that
    are replayed before the student takes over.
    """

    max_turns: int
    prefix_by: str = ""  # who demonstrates: expert | teacher; "" = nobody
    prefix: Callable[[int], int] = lambda length: 0
