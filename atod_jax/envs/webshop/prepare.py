"""Writes a shop's goals as a TFDS data set, without TensorFlow: for looking at them elsewhere.

    python -m atod_jax.envs.webshop.prepare --data=FOLDER --out=DIR

`tfds.builder_from_directory` reads the result; `id` is the task id that evaluations report. Runs
make the same goals themselves from the products. Without --data they are of the generated shop.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from atod_jax.envs import prepared, webshop

# `options` is a JSON list of [name, value] or of values alone; a price limit is in dollars.
FIELDS: dict[str, type] = {
    **dict.fromkeys(("id", "asin", "instruction", "options", "category", "title"), str),
    "attributes": list,
    "price_limit": float,
}


def prepare(cfg: webshop.Config, out: str | Path) -> Path:
    """Builds the data set of the goals of `cfg` below `out`; returns its folder.

    Raises:
      ValueError, FileNotFoundError: as `webshop.tasks`.
    """
    webshop.open_shop(cfg.data, cfg.seed, people=cfg.human_goals)  # refused before anything begins
    goals = {split: _goals(cfg, split) for split in webshop.SPLITS}
    return prepared.write("shop_goals", FIELDS, splits=goals, out=out)


def _goals(cfg: webshop.Config, split: str) -> Iterator[dict[str, Any]]:
    opened = webshop.open_shop(cfg.data, cfg.seed, people=cfg.human_goals)
    for task in webshop.tasks(cfg, split):
        goal = opened.goal(task.payload)
        yield {
            "id": task.id,
            "asin": goal.asin,
            "instruction": goal.instruction,
            "options": json.dumps(goal.options),
            "category": goal.category,
            "title": goal.title,
            "attributes": list(goal.attributes),
            "price_limit": goal.price_limit,
        }


if __name__ == "__main__":
    prepared.main(
        lambda data, out: prepare(webshop.Config(data=data), out), source="data", default=""
    )
