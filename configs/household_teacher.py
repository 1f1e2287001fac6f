"""GRPO from a supervised start: the second half of the household teachers' recipe.

    python -m atod_jax.train --config=configs/household_teacher.py:start=DIR,export=DIR --workdir=W

A high learning rate lowers a good teacher; compare the report's before and after columns.
"""

from ml_collections import ConfigDict

from atod_jax import config

from . import household


def get_config(arg: str | None = None) -> ConfigDict:
    """GRPO on 16 x 8 rollouts."""
    v = config.parse_arg(arg, start="", export="", steps=60, seed=0, lr=1e-4)
    c = household.games(config.base())
    c.seed = v.seed
    c.total_steps = v.steps
    c.student.path = v.start
    c.algorithm.name = "grpo"
    c.rollout.tasks = 16
    c.rollout.group = 8
    c.optim.lr = v.lr
    c.optim.b2 = 0.95
    c.optim.weight_decay = 0.0
    c.export = v.export
    return c
