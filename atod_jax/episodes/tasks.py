"""Which tasks a step plays: a pure function of (seed, step), so resuming needs no state."""

import functools
from collections.abc import Sequence

import numpy as np

from atod_jax.records import Task
from atod_jax.streams import Stream, rng


class TaskSource:
    """Endless epochs over a split, each in its own order; no task repeats inside an epoch."""

    def __init__(self, tasks: Sequence[Task], seed: int):
        if not len(tasks):
            raise ValueError(
                "the training split has no tasks; check env.train_split and the data that the "
                "environment reads, such as env.alfworld.games"
            )
        self._tasks = tasks
        self._seed = seed
        self._order = functools.lru_cache(maxsize=2)(self._epoch_order)

    def batch(self, step: int, count: int) -> list[Task]:
        """The `count` tasks of iteration `step`."""
        first = step * count
        return [self._at(first + i) for i in range(count)]

    def _at(self, position: int) -> Task:
        epoch, offset = divmod(position, len(self._tasks))
        return self._tasks[int(self._order(epoch)[offset])]

    def _epoch_order(self, epoch: int) -> np.ndarray:
        return rng(self._seed, Stream.tasks, epoch).permutation(len(self._tasks))
