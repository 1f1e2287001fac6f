"""What a compiled program costs: seconds, bytes and operations, from its kernels."""

import collections
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from atod_jax.estimate import hlo
from atod_jax.estimate.hardware import Chip
from atod_jax.estimate.hlo import Kernel
from atod_jax.estimate.text import amount, digits
from atod_jax.results.tables import padded_table

Run = tuple["Cost", float, float]  # a program, how often it runs, steps of its open loop


class Figures(NamedTuple):
    """Of a program, or of a step of its open loop; of one device."""

    seconds: float = 0.0
    bytes: float = 0.0
    flops: float = 0.0

    def plus(self, times: float, other: "Figures") -> "Figures":
        """These and `times` others."""
        return Figures(*(a + times * b for a, b in zip(self, other, strict=True)))


class Cost(NamedTuple):
    """One compiled program."""

    whole: Figures  # beside the open loop
    step: Figures
    memory: "Memory"
    kernels: Sequence[tuple[Kernel, float]]  # seconds of one run; 0 where they are not told apart


class Memory(NamedTuple):
    """Bytes on a device."""

    arguments: int
    temporary: int
    results: int  # those that take the place of no argument

    @property
    def needed(self) -> int:
        return sum(self)


def of_executable(executable: Any, seconds: Callable[[Kernel], float]) -> Cost:
    """The cost of a program whose kernels take so long."""
    timed = [(kernel, seconds(kernel)) for kernel in hlo.kernels(executable.as_text())]
    sums = {False: Figures(), True: Figures()}
    for k, once in timed:
        sums[k.open_loop] = sums[k.open_loop].plus(k.times, Figures(once, k.bytes, k.flops))
    m = executable.memory_analysis()
    results = m.output_size_in_bytes - m.alias_size_in_bytes
    memory = Memory(m.argument_size_in_bytes, m.temp_size_in_bytes, results)
    return Cost(sums[False], sums[True], memory, timed)


def estimated(executable: Any, chip: Chip) -> Cost:
    """Of a program compiled for a chip that is not here."""
    return of_executable(executable, lambda kernel: hlo.seconds(kernel, chip))


def binds(cost: Cost, chip: Chip, *, times: float, steps: float) -> str:
    """What most of a program's time goes to: products, memory, links or launches."""
    spent: dict[str, float] = collections.defaultdict(float)
    for kernel, seconds in cost.kernels:
        runs = kernel.times * (steps if kernel.open_loop else times)
        spent[hlo.bound(kernel, chip)] += runs * seconds
    return max(spent, key=spent.__getitem__)


def heaviest(runs: Sequence[Run], *, top: int) -> str:
    """The kernels that take longest, by the line of the source that asked for them."""
    groups: dict[tuple[str, str, str], Figures] = collections.defaultdict(Figures)
    for cost, times, steps in runs:
        for kernel, seconds in cost.kernels:
            key = kernel.source, kernel.kind, kernel.shape[:40]
            once = Figures(seconds, kernel.bytes, kernel.flops)
            often = kernel.times * (steps if kernel.open_loop else times)
            groups[key] = groups[key].plus(often, once)
    rows = [
        (digits(1e3 * f.seconds), amount(f.bytes), amount(f.flops, "FLOP"), *key)
        for key, f in sorted(groups.items(), key=lambda item: item[1], reverse=True)[:top]
    ]
    return padded_table(("ms", "moved", "products", "source", "kernel", "result"), rows)
