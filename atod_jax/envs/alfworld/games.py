"""Reads household games: one JSON object per line, plain or packed with xz or gzip, or a TFDS data
set that `prepare` made of such a file."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from atod_jax import texts
from atod_jax.envs import jsonl, prepared
from atod_jax.envs.alfworld.engine import Engine
from atod_jax.envs.alfworld.game import TASK_TYPES, Game, Item, Receptacle
from atod_jax.envs.alfworld.generate import SPLITS
from atod_jax.envs.alfworld.prompts import NAME


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
            if not isinstance(record.get("game"), str):
                raise ValueError(f"{path} holds no games; name a data set that `prepare` made")
            yield number, json.loads(record["game"])


def _game(record: dict[str, Any]) -> Game:
    target, plan = record["pddl_params"], record["candidate_plan"]
    if record["task_type"] not in TASK_TYPES:
        raise ValueError(f"task_type {record['task_type']!r} is none of {TASK_TYPES}")
    if record["split"] not in SPLITS:
        raise ValueError(f"split={record['split']!r}: use one of {', '.join(SPLITS)}")
    if not isinstance(target, dict):
        raise ValueError(f"pddl_params={target!r}: expected an object")
    game = Game(
        id=jsonl.filled(record, "id"),
        split=record["split"],
        task_type=record["task_type"],
        goal=" ".join(jsonl.filled(record, "goal").split()),
        object_target=jsonl.filled(target, "object_target"),
        parent_target=jsonl.text_of(target, "parent_target"),
        toggle_target=jsonl.text_of(target, "toggle_target"),
        agent_start=jsonl.text_of(record, "agent_start"),
        receptacles=tuple(map(_receptacle, jsonl.objects_of(record, "receptacles"))),
        items=tuple(map(_item, jsonl.objects_of(record, "objects"))),
        plan=None if plan is None else jsonl.texts_of(record, "candidate_plan"),
    )
    _check_targets(game)
    Engine(game)  # refuses a game that contradicts itself
    return game


def _receptacle(record: dict[str, Any]) -> Receptacle:
    if not isinstance(record["openable"], bool):
        raise ValueError(f"openable={record['openable']!r}: expected true or false")
    return Receptacle(
        _name(record), jsonl.filled(record, "type"), record["openable"], jsonl.filled(record, "loc")
    )


def _item(record: dict[str, Any]) -> Item:
    inside = None if record["in"] is None else jsonl.filled(record, "in")
    return Item(_name(record), jsonl.filled(record, "type"), inside)


def _name(record: dict[str, Any]) -> str:
    name = jsonl.text_of(record, "name")
    if not re.fullmatch(NAME, name, re.ASCII):
        raise ValueError(f"{texts.one_line(name)!r} is no name such as 'mug 1'")
    return name


def _check_targets(game: Game) -> None:
    """Refuses a game that asks for what is not in it."""
    items, places = {i.type for i in game.items}, {r.type for r in game.receptacles}
    wanted = [("object_target", game.object_target, items)]
    if game.task_type == "look_at_obj_in_light":
        wanted.append(("toggle_target", game.toggle_target, items))
    else:
        wanted.append(("parent_target", game.parent_target, places))
    for key, kind, there in wanted:
        if kind not in there:
            raise ValueError(f"{key}={kind!r}: nothing in the game is of this type")
