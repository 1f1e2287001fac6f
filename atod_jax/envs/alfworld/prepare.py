"""Turns a file of household games into a TFDS data set, without TensorFlow.

    python -m atod_jax.envs.alfworld.prepare --games=games.jsonl.xz --out=DIR

The result can be read by `tfds.builder_from_directory` and be named as env.alfworld.games.
"""

import json
from pathlib import Path

from atod_jax.envs import jsonl, prepared
from atod_jax.envs.alfworld.games import read_games

FIELDS: dict[str, type] = dict.fromkeys(
    ("id", "task_type", "goal", "game"), str
)  # `game`: all of it, as JSON


def prepare(games: str | Path, out: str | Path) -> Path:
    """Builds the data set below `out`; returns the folder to name as env.alfworld.games.

    Raises:
      FileNotFoundError: no file at `games`.
      ValueError: it is damaged, or a line is not a game.
    """
    read_games(games)  # every line is checked before anything is written
    found: dict[str, list[dict[str, str]]] = {}
    for _, record in jsonl.records(games):
        flat = {key: record[key] for key in ("id", "task_type", "goal")}
        found.setdefault(record["split"], []).append(flat | {"game": json.dumps(record)})
    return prepared.write("household_games", FIELDS, splits=found, out=out)


if __name__ == "__main__":
    prepared.main(prepare, source="games")
