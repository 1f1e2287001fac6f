"""Reads the official ALFWorld data, as `alfworld-download` leaves it: one folder per game.

    ROOT[/json_2.1.1]/<split>/<task>-<object>-<vessel>-<receptacle>-<scene>/<trial>/game.tw-pddl

A `game.tw-pddl` is one JSON object: `pddl_domain`, `grammar` (the texts, goal sentence included),
`pddl_problem`, `solvable` and `walkthrough`. Listing a split reads every game of it, two
milliseconds each, so that a damaged one is found before anything is played.
"""

import dataclasses
import functools
import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from atod_jax.envs import jsonl, order
from atod_jax.envs.alfworld.engine import Engine
from atod_jax.envs.alfworld.furniture import LAMP
from atod_jax.envs.alfworld.game import TASK_TYPES, Game
from atod_jax.envs.alfworld.generate import GOALS
from atod_jax.envs.alfworld.pddl import read_problem

RELEASE, GAME_FILE = "json_2.1.1", "game.tw-pddl"
NO_GOAL = "UNKNOWN GOAL"  # what a grammar says before a goal sentence is written into it

_GOAL = re.compile(r'Your task is to: (.*?)\."')
_TEXTS = ("pddl_domain", "grammar", "pddl_problem")
_HELP = f"point env.alfworld.games at $ALFWORLD_DATA or its {RELEASE}, filled by alfworld-download"


@dataclasses.dataclass(frozen=True)
class Trial:
    """One official game, named by its file: what is sent to the process that plays it."""

    path: str
    split: str

    @property
    def id(self) -> str:
        """Task folder and trial folder: unique within the release."""
        return "/".join(Path(self.path).parts[-3:-1])

    @property
    def task_type(self) -> str:
        """One of TASK_TYPES, from the name of the task folder."""
        return self.id.partition("-")[0]


def find_trials(root: str | Path, split: str) -> tuple[Trial, ...]:
    """The playable games of a split, chosen as ALFWorld's own loader does.

    The order is shuffled once and for all, so that the first n games are a fair sample of the task
    types. Left out: folders that say `movable` or `Sliced`, other task types, folders without a
    game file, and games not marked solvable.

    Raises:
      FileNotFoundError: no folder for the split.
      ValueError: a damaged game file, or a split without a playable game; both name the path.
    """
    base = Path(root).absolute()
    folder = (base / RELEASE if (base / RELEASE).is_dir() else base) / split
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; {_HELP}")
    verdicts: Counter[str] = Counter()
    found = []
    for path in sorted(folder.glob("*/*")):
        trial = Trial(str(path / GAME_FILE), split)
        verdict = _verdict(trial)
        verdicts[verdict] += 1
        if verdict == "playable":
            found.append(trial)
    if not found:
        counts = ", ".join(f"{n} {what}" for what, n in verdicts.items()) or "it is empty"
        raise ValueError(f"{folder}: no playable game ({counts}); {_HELP}")
    return order.shuffled(found, lambda trial: trial.id)


def _verdict(trial: Trial) -> str:
    if "movable" in trial.id or "Sliced" in trial.id or trial.task_type not in TASK_TYPES:
        return "of other kinds"
    if not Path(trial.path).is_file():
        return f"without a {GAME_FILE}"
    entries = read_game_file(trial.path)
    if entries["solvable"] is not True:
        return "not marked solvable"
    _game(trial, entries)
    return "playable"


def read_game_file(path: str | Path) -> dict[str, Any]:
    """The entries of a `game.tw-pddl`; `solvable` and `walkthrough` are None where absent.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file is damaged or lacks an entry; names it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no game file at {path}; {_HELP}")
    try:
        entries = jsonl.storable(json.loads(path.read_text(encoding="utf-8-sig")))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged or cut off ({error}); download it again") from None
    if not isinstance(entries, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(entries).__name__}")
    for name in _TEXTS:
        if not isinstance(entries.get(name), str):
            raise ValueError(f"{path}: entry {name!r} is missing or no text; download it again")
    entries = {"solvable": None, "walkthrough": None} | entries
    if entries["walkthrough"] is not None:
        try:
            jsonl.texts_of(entries, "walkthrough")
        except ValueError as error:
            raise ValueError(f"{path}: {error}; download it again") from None
    return entries


@functools.lru_cache(maxsize=512)
def read_trial(trial: Trial) -> Game:
    """The game of a trial; its walkthrough is the plan.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file or the problem in it is damaged; names the file.
    """
    return _game(trial, read_game_file(trial.path))


def _game(trial: Trial, entries: dict[str, Any]) -> Game:
    plan = entries["walkthrough"]
    try:
        game = read_problem(
            entries["pddl_problem"],
            goal_of(entries["grammar"]),
            id=trial.id,
            split=trial.split,
            plan=None if plan is None else tuple(plan),
        )
        game = game if game.goal else dataclasses.replace(game, goal=templated_goal(game))
        Engine(game)  # refuses a game that contradicts itself
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{trial.path}: {error}") from None
    return game


def goal_of(grammar: str) -> str:
    """The goal sentence in the text grammar, without its final dot; "" where none is filled in.

    Raises:
      ValueError: the grammar has no place for a goal.
    """
    match = _GOAL.search(grammar)
    if match is None:
        raise ValueError("the grammar has no line 'Your task is to: ...'")
    return "" if match[1] == NO_GOAL else match[1]


def templated_goal(game: Game) -> str:
    """One of the two sentences of the task type; which one depends on the game's id alone."""
    sentences = GOALS[game.task_type]
    sentence = sentences[hashlib.md5(game.id.encode()).digest()[0] % len(sentences)]
    filled = sentence.format(obj=game.object_target.lower(), place=game.parent_target.lower())
    return filled.replace(LAMP.lower(), game.toggle_target.lower() or LAMP.lower())
