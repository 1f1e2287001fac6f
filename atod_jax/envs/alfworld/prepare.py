"""Turns a file of household games into a TFDS data set, without TensorFlow.

    python -m atod_jax.envs.alfworld.prepare --games=games.jsonl.xz --out=DIR

The result can be read by `tfds.builder_from_directory` and be named as env.games.
"""

import argparse
import json
from pathlib import Path

from atod_jax.envs.alfworld.games import read_games, read_records


def prepare(games: str | Path, out: str | Path) -> Path:
    """Builds the data set below `out`; returns the folder to name as env.games.

    Raises:
      FileNotFoundError: no file at `games`.
      ValueError: it is damaged, or a line is not a game.
    """
    from atod_jax.envs.alfworld.tfds_builder import HouseholdGames

    read_games(games)  # every line is checked before anything is written
    found: dict[str, list[dict[str, str]]] = {}
    for _, record in read_records(Path(games)):
        flat = {key: record[key] for key in ("id", "task_type", "goal")}
        found.setdefault(record["split"], []).append(flat | {"game": json.dumps(record)})
    builder = HouseholdGames(games=found, data_dir=str(out))
    builder.download_and_prepare()
    return Path(builder.data_path)


def main() -> None:
    """Command line: `--games` file, `--out` folder of the data set."""
    parser = argparse.ArgumentParser(description="Prepares a games file for env.games.")
    parser.add_argument("--games", required=True)
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    print(prepare(arguments.games, arguments.out))


if __name__ == "__main__":
    main()
