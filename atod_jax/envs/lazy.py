"""Tasks that are built when they are looked at."""

import collections.abc
from collections.abc import Callable
from typing import overload

from atod_jax.records import Task


class LazyTasks(collections.abc.Sequence[Task]):
    """`build(number)` for every one of `numbers`; an index builds its task anew."""

    def __init__(self, build: Callable[[int], Task], numbers: range):
        self._build, self._numbers = build, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Task: ...

    @overload
    def __getitem__(self, index: slice) -> list[Task]: ...

    def __getitem__(self, index: int | slice) -> Task | list[Task]:
        if isinstance(index, slice):
            return [self._build(number) for number in self._numbers[index]]
        return self._build(self._numbers[index])  # negative indices too; raises IndexError
