"""Every option of a run, typed: `Run` is a tree of frozen dataclasses, parsed once.

Options stand where they are used (`optim.lr` in `device/optim.py`); those of the parts of a run
stand in `sections`. A `configs/*.py` file is `base()`, a ConfigDict of all defaults, plus a few
overrides; `resolve` turns it into a `Run`, and below the command line nobody sees a ConfigDict.
"""

from atod_jax.config.files import load, parse_arg, shipped
from atod_jax.config.reading import (
    GROUPS,
    algorithm_of,
    base,
    catalogue,
    changed,
    choose,
    chosen,
    defining,
    environment_of,
    leaves,
    named,
    resolve,
    to_config,
    to_plain,
)
from atod_jax.config.sections import Run

__all__ = [
    "GROUPS",
    "Run",
    "algorithm_of",
    "base",
    "catalogue",
    "changed",
    "choose",
    "chosen",
    "defining",
    "environment_of",
    "leaves",
    "load",
    "named",
    "parse_arg",
    "resolve",
    "shipped",
    "to_config",
    "to_plain",
]
