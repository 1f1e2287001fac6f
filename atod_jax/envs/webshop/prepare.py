"""Writes a shop's goals as a TFDS data set, without TensorFlow: for looking at them elsewhere.

    python -m atod_jax.envs.webshop.prepare --data=FOLDER --out=DIR

`tfds.builder_from_directory` reads the result; `id` is the task id that evaluations report. Runs
make the same goals themselves from the products.
"""

import argparse
from pathlib import Path

from atod_jax.envs import webshop


def prepare(cfg: webshop.Config, out: str | Path) -> Path:
    """Builds the data set of the goals of `cfg` below `out`; returns its folder.

    Raises:
      ValueError, FileNotFoundError: as `webshop.tasks`.
    """
    from atod_jax.envs.webshop.tfds_builder import ShopGoals

    numbers = {
        split: [task.payload for task in webshop.tasks(cfg, split)] for split in webshop.SPLITS
    }
    opened = webshop.open_shop(cfg.data, cfg.seed, cfg.human_goals)
    builder = ShopGoals(shop=opened, numbers=numbers, data_dir=str(out))
    builder.download_and_prepare()
    return Path(builder.data_path)


def main() -> None:
    """Command line: `--data` folder of the official files ("": generated), `--out` folder."""
    parser = argparse.ArgumentParser(description="Writes the goals of a shop as a data set.")
    parser.add_argument("--data", default="")
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    print(prepare(webshop.Config(data=arguments.data), arguments.out))


if __name__ == "__main__":
    main()
