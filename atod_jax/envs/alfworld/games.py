"""Reads household games: one JSON object per line, plain or packed with xz or gzip, or a TFDS data
set that `prepare` made of such a file."""

import gzip
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from atod_jax.envs import prepared
from atod_jax.envs.alfworld.game import TASK_TYPES, Game, Item, Receptacle

_OPENERS = {".xz": lzma.open, ".gz": gzip.open}


def read_games(
    path: str | Path, split: str | None = None, *, planned_only: bool = False
) -> list[Game]:
    """Returns the games of a file in file order, of one split if given, with their candidate plans.

    With `planned_only`, games without a plan are left out.
    Raises FileNotFoundError for a missing file; ValueError, naming file and line, for a damaged one
    and for a game that lacks a field.
    """
    games = []
    records = _prepared(path, split) if prepared.is_prepared(path) else read_records(Path(path))
    for number, record in records:
        try:
            game = _game(record)
        except (KeyError, TypeError, ValueError) as error:
            what = f"field {error} is missing" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{path}, line {number}: not a game: {what}") from None
        if split in (None, game.split) and not (planned_only and game.plan is None):
            games.append(game)
    return games


def _prepared(path: str | Path, split: str | None) -> Iterator[tuple[int, Any]]:
    for name in [split] if split else prepared.splits(path):
        for number, record in enumerate(prepared.records(path, name), 1):
            yield number, json.loads(record["game"])


def read_records(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, what the line holds) of a file of JSON lines; errors as in `read_games`."""
    if not path.is_file():
        raise FileNotFoundError(f"no games file at {path}; give the path of a games.jsonl[.xz|.gz]")
    number = 0
    try:
        with _OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                yield number, json.loads(line)
    except (EOFError, OSError, lzma.LZMAError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: damaged or cut off after line {number} ({error}); copy the file again"
        ) from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number}: not JSON ({error}); copy it again") from None


def _game(record: dict[str, Any]) -> Game:
    target, plan = record["pddl_params"], record["candidate_plan"]
    if record["task_type"] not in TASK_TYPES:
        raise ValueError(f"task_type {record['task_type']!r} is none of {TASK_TYPES}")
    return Game(
        id=record["id"],
        split=record["split"],
        task_type=record["task_type"],
        goal=record["goal"],
        object_target=target["object_target"],
        parent_target=target["parent_target"],
        toggle_target=target["toggle_target"],
        agent_start=record["agent_start"],
        receptacles=tuple(
            Receptacle(r["name"], r["type"], r["openable"], r["loc"]) for r in record["receptacles"]
        ),
        items=tuple(Item(o["name"], o["type"], o["in"]) for o in record["objects"]),
        plan=None if plan is None else tuple(plan),
    )
