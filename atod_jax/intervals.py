"""What an evaluation found and how sure one can be of it.

Success is 0 or 1 per task, so two runs on a few hundred tasks differ by several points by chance
alone. Every number this project reports therefore carries a 95 % interval from here. NumPy only.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

Z95 = 1.959963984540054  # the 97.5 % quantile of the standard normal


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % bounds, all in the unit of the estimate (here: proportions)."""

    value: float
    low: float
    high: float

    def excludes(self, point: float) -> bool:
        """True where `point` lies outside the interval."""
        return not self.low <= point <= self.high


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """One pass over a split of tasks, sampled at one temperature; one entry per task.

    Raises:
        ValueError: the fields disagree in length, are empty, or a task id occurs twice.
    """

    temperature: float
    task_ids: tuple[str, ...]
    kinds: tuple[str, ...]
    success: np.ndarray  # bool[n]
    turns: np.ndarray  # i32[n], model responses of the episode
    valid_rate: float  # share of responses that parsed into an action, over all turns

    def __post_init__(self) -> None:
        sizes = {
            "task_ids": (len(self.task_ids),),
            "kinds": (len(self.kinds),),
            "success": np.shape(self.success),
            "turns": np.shape(self.turns),
        }
        if len(set(sizes.values())) != 1 or sizes["task_ids"] == (0,):
            raise ValueError(f"an EvalResult needs one entry per task in every field, got {sizes}")
        if len(set(self.task_ids)) != len(self.task_ids):
            raise ValueError("an EvalResult needs distinct task_ids; evaluate each task once")

    def rate(self) -> Interval:
        """Share of tasks solved, with its Wilson interval."""
        return wilson(int(np.sum(self.success)), len(self.task_ids))

    def rate_by_kind(self) -> dict[str, Interval]:
        """The same for each task type, types in alphabetical order."""
        kinds = np.asarray(self.kinds)
        return {
            kind: wilson(int(np.sum(self.success[kinds == kind])), int(np.sum(kinds == kind)))
            for kind in sorted(set(self.kinds))
        }

    def to_json(self) -> dict[str, Any]:
        """A dict of plain Python values; `from_json` gives an equal result back."""
        return {
            "temperature": float(self.temperature),
            "task_ids": list(self.task_ids),
            "kinds": list(self.kinds),
            "success": [bool(x) for x in self.success],
            "turns": [int(x) for x in self.turns],
            "valid_rate": float(self.valid_rate),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: a field is missing or unknown.
        """
        expected = {field.name for field in dataclasses.fields(cls)}
        if set(data) != expected:
            raise ValueError(f"an EvalResult has the fields {sorted(expected)}, got {sorted(data)}")
        return cls(
            temperature=float(data["temperature"]),
            task_ids=tuple(data["task_ids"]),
            kinds=tuple(data["kinds"]),
            success=np.asarray(data["success"], bool),
            turns=np.asarray(data["turns"], np.int32),
            valid_rate=float(data["valid_rate"]),
        )


def wilson(successes: int, trials: int) -> Interval:
    """Wilson's score interval for a proportion (Wilson 1927), which stays honest near 0 and 1.

    centre = (p + z^2/2n) / (1 + z^2/n), half-width = z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n).

    Raises:
        ValueError: no trials, or more successes than trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"need 0 <= successes <= trials and a trial, got {successes} of {trials}")
    p, z2 = successes / trials, Z95**2
    shrink = 1 + z2 / trials
    centre = (p + z2 / (2 * trials)) / shrink
    half = Z95 * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2)) / shrink
    # At p = 0 and 1 a bound equals p in exact arithmetic; rounding must not push it past p.
    return Interval(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)))


def paired_difference(first: np.ndarray, second: np.ndarray) -> Interval:
    """Mean of `first - second` over the same tasks, clustered by task.

    With d_t = the difference at task t after averaging each side over its seeds:
    mean(d) -+ z std(d, ddof=1) / sqrt(n). Pairing removes the spread of task difficulty; averaging
    over seeds before the spread is taken keeps runs on one task from counting as independent tasks.
    The interval speaks of new tasks, not of new training seeds, and the normal approximation asks
    for some tens of tasks on which the two sides differ.

    Args:
        first: 0/1 outcomes, [n] or [seeds, n].
        second: likewise; task t is column t on both sides, the numbers of seeds may differ.

    Raises:
        ValueError: the task axes differ in length or hold fewer than two tasks.
    """
    sides = [np.atleast_2d(np.asarray(side, np.float64)) for side in (first, second)]
    shapes = [side.shape for side in sides]
    if any(len(shape) != 2 or shape[0] < 1 for shape in shapes) or shapes[0][1] != shapes[1][1]:
        raise ValueError(f"outcomes must be [tasks] or [seeds, tasks] on equal tasks, got {shapes}")
    difference = sides[0].mean(axis=0) - sides[1].mean(axis=0)
    if difference.size < 2:
        raise ValueError(f"a paired interval needs at least 2 tasks, got {difference.size}")
    mean = float(difference.mean())
    half = Z95 * float(difference.std(ddof=1)) / math.sqrt(difference.size)
    return Interval(mean, mean - half, mean + half)
