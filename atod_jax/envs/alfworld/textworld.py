"""Official game files in the engine they were made for, behind the same interface.

Needs the extra `alfworld`. TextWorld takes tenths of a second per step and shares one text parser
per process: any number of games may take turns in a process, but threads would disturb each other,
so a lock keeps them apart. Use processes for speed.
"""

import threading
from typing import Any

from atod_jax.envs.alfworld.official import NO_GOAL, Trial, read_game_file, read_trial
from atod_jax.envs.base import Observation, StepResult
from atod_jax.records import Task

_ONE_AT_A_TIME = threading.Lock()


class TextworldEnv:
    """One player over TextWorld; every step after the win is refused."""

    def __init__(self, win_reward: float):
        self._win_reward = win_reward
        self._game = _new_player()
        self._is_running = False

    def reset(self, task: Task) -> Observation:
        """Loads the official game of a task and shows its opening.

        Raises:
          ValueError: the task is not of an official data folder, or its file is damaged.
          FileNotFoundError: the file is gone.
        """
        entries = _entries(task)
        with _ONE_AT_A_TIME:
            self._game.load(entries)
            state = self._game.reset()
        self._is_running = True
        return _observation(state)

    def step(self, command: str) -> StepResult:
        """Plays one command; reward is `win_reward` on the winning step, else 0.

        Raises:
          ValueError: no game is running (before `reset`, after the win or after `close`).
        """
        if not self._is_running:
            raise ValueError(f"step({command!r}) without a running game; call reset(task) first")
        with _ONE_AT_A_TIME:
            state, _, done = self._game.step(command)
        self._is_running = not done
        reward = self._win_reward if state["won"] else 0.0
        return StepResult(_observation(state), reward, done=done, won=state["won"])

    def close(self) -> None:
        """Ends the game, if one runs."""
        self._is_running = False


def _new_player() -> Any:
    """A PDDL player that calls things by the names ALFWorld gives them."""
    try:
        from alfworld.agents.environment import alfred_tw_env  # pyright: ignore  # optional
        from textworld import EnvInfos  # pyright: ignore
        from textworld.envs import PddlEnv  # pyright: ignore
    except ImportError as error:
        raise ValueError(
            f"env.alfworld.engine='textworld' cannot start ({error}); run `pip install"
            " alfworld==0.4.2` (it builds C++ sources), or set env.alfworld.engine=native"
        ) from error
    infos = EnvInfos(won=True, admissible_commands=True)
    return alfred_tw_env.AlfredDemangler(PddlEnv(infos))


def _entries(task: Task) -> dict[str, Any]:
    trial = task.payload
    if not isinstance(trial, Trial):
        raise ValueError(
            f"task {task.id!r} is no game.tw-pddl file; TextWorld plays official folders only"
        )
    entries = read_game_file(trial.path)
    if NO_GOAL not in entries["grammar"]:
        return entries
    return entries | {"grammar": entries["grammar"].replace(NO_GOAL, read_trial(trial).goal)}


def _observation(state: Any) -> Observation:
    return Observation(state["feedback"], tuple(state["admissible_commands"]))
