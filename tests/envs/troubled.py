"""Environments that misbehave on command; importable by worker processes."""

import dataclasses
import itertools
import os
import signal
import time
from pathlib import Path

from atod_jax.envs import alfworld
from atod_jax.envs.base import Observation, StepResult


@dataclasses.dataclass
class Counter:
    """Counts its steps. Commands of the form "what" or "what once" cause trouble.

    "what once": the first time only; "what later": the second time only.
    """

    folder: str
    trouble: str = ""  # at construction

    def __post_init__(self):
        self._act(self.trouble)

    def reset(self, task):
        """The payload is a command of its own."""
        self.task, self.count = task, 0
        self._act(task.payload)
        return Observation(f"{task.id} starts")

    def step(self, command):
        """Wins at the fifth step."""
        self.count += 1
        self._act(command)
        won = self.count == 5
        text = f"{self.task.id} {self.count} {command}"
        if command == "drift":
            text += f" {time.monotonic()}"
        return StepResult(Observation(text), reward=float(won), done=won, won=won)

    def close(self):
        """Nothing to close."""

    def _act(self, command):
        what, _, when = command.partition(" ")
        if when and self._occurrence(what) != {"once": 1, "later": 2}[when]:
            return
        if what == "hang":
            time.sleep(1000)
        elif what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "raise":
            raise OSError("the disk is on fire")

    def _occurrence(self, what):
        """How often this has happened so far, in all processes together."""
        for number in itertools.count(1):
            try:
                (Path(self.folder) / f"{what}-{number}").open("x").close()
            except FileExistsError:
                continue
            return number


class SlowHome:
    """A household in which everything takes some milliseconds, so that a kill hits something."""

    def __init__(self, cfg, max_turns=0):
        self._env = alfworld.AlfworldEnv(cfg.win_reward)

    def reset(self, task):
        """As the household does."""
        time.sleep(0.005)
        return self._env.reset(task)

    def step(self, command):
        """As the household does."""
        time.sleep(0.005)
        return self._env.step(command)

    def close(self):
        """As the household does."""
        self._env.close()


ENVIRONMENT = alfworld.ENVIRONMENT._replace(make=SlowHome)
