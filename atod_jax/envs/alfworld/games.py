"""Reads household games: one JSON object per line, plain or packed with xz or gzip, or a TFDS data
set that `prepare` made of such a file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from atod_jax.envs import jsonl, prepared
from atod_jax.envs.alfworld.game import TASK_TYPES, Game, Item, Receptacle


def read_games(
    path: str | Path, split: str | None = None, *, planned_only: bool = False
) -> list[Game]:
    """The games of a file in file order, of one split if given, with their candidate plans.

    With `planned_only`, games without a plan are left out.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is damaged, or a game lacks a field; names file and line.
    """
    is_set = prepared.is_prepared(path)
    records = _prepared(path, split) if is_set else jsonl.records(path, what="games file")
    games = (
        jsonl.build_at(f"{path}, line {number}: not a game", record, _game)
        for number, record in records
    )
    return [
        game
        for game in games
        if split in (None, game.split) and not (planned_only and game.plan is None)
    ]


def _prepared(path: str | Path, split: str | None) -> Iterator[tuple[int, Any]]:
    for name in [split] if split else prepared.splits(path):
        for number, record in enumerate(prepared.records(path, name), 1):
            yield number, json.loads(record["game"])


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
