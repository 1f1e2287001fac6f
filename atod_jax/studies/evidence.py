"""How sure one can be of what several training seeds show.

Two kinds of interval are kept apart. One speaks of new tasks, for these very runs; the other of new
runs, with fresh models and another seed, on these very tasks. A claim about a method needs the
second.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats  # come with JAX

from atod_jax.results.intervals import Interval, clustered, paired_difference

POWER = 0.8


class Estimate(NamedTuple):
    """A share, or a difference of shares, and both of its 95 % intervals."""

    per_seed: tuple[float, ...]
    tasks: Interval  # over new tasks
    seeds: Interval  # over new seeds; infinitely wide for a single one

    @property
    def value(self) -> float:
        """The mean over seeds."""
        return self.seeds.value


def share(success: Sequence[np.ndarray]) -> Estimate:
    """The share of tasks solved: one array [n] or [k, n] of 0 and 1 for each seed."""
    each = [np.atleast_2d(x).mean(axis=0) for x in success]
    per_seed = tuple(float(x.mean()) for x in each)
    tasks = clustered(np.concatenate([np.atleast_2d(x) for x in success]))
    return Estimate(per_seed, tasks, over_seeds(per_seed))


def difference(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> Estimate:
    """Paired: seed i on one side goes with seed i on the other, task t with task t.

    Raises:
      ValueError: other numbers of seeds or tasks on the two sides.
    """
    pairs = list(zip(first, second, strict=True))
    each = [np.atleast_2d(a).mean(axis=0) - np.atleast_2d(b).mean(axis=0) for a, b in pairs]
    per_seed = tuple(float(x.mean()) for x in each)
    sides = [np.stack([np.atleast_2d(x).mean(axis=0) for x in side]) for side in (first, second)]
    return Estimate(per_seed, paired_difference(*sides), over_seeds(per_seed))


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean and t interval of one number a seed."""
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return Interval(mean, -math.inf, math.inf)
    half = float(stats.t.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def bounds(interval: Interval, sign: str = "") -> str:
    """In points, within what a share can be, or a difference of shares where there is a sign."""
    if not math.isfinite(interval.low):
        return "one seed"
    least = -1.0 if sign else 0.0
    low, high = (100 * min(1.0, max(least, x)) for x in (interval.low, interval.high))
    return f"{low:{sign}.1f}, {high:{sign}.1f}"


def over_seeds_text(values: Sequence[float], sign: str = "") -> str:
    """Mean and {interval} of one share a seed, or of one difference where there is a sign."""
    mean = over_seeds(values)
    return f"{100 * mean.value:{sign}.1f} {{{bounds(mean, sign)}}}"


def detectable(spread: float, seeds: int) -> float:
    """The smallest true difference that `seeds` paired seeds show with a power of 80 %.

    Of a two-sided t test at 5 %, by the noncentral t distribution; `spread` is the standard
    deviation of the paired differences over seeds. Infinite for a single seed.
    """
    if seeds < 2:
        return math.inf
    line = stats.t.ppf(0.975, seeds - 1)

    def missing(shift: float) -> float:
        return float(stats.nct.sf(line, seeds - 1, shift)) - POWER

    shift = optimize.root_scalar(missing, bracket=(0.0, 50.0)).root
    return shift * spread / math.sqrt(seeds)
