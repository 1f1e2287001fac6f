"""Programs that work on a run that is there: --checkpoint, and the run's own configuration."""

import argparse

from ml_collections import ConfigDict

from atod_jax import config
from atod_jax.run.cli import Flags
from atod_jax.run.models import saved_run
from atod_jax.run.workdir import read_run


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """The flag that names the weights."""
    parser.add_argument(
        "--checkpoint",
        default="",
        help="a workdir of train, a step folder in it, or a Hugging Face folder; without --config "
        "a run's own configuration is taken",
    )


def own_config(flags: Flags) -> ConfigDict | None:
    """The configuration of the run that --checkpoint names; None where it names no run.

    Raises:
      FileNotFoundError: there is nothing of that name.
    """
    saved = saved_run(flags.checkpoint) if flags.checkpoint else None
    return None if saved is None else config.to_config(read_run(saved.workdir))
