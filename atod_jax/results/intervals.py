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
    """A split of tasks, each played once per sampling seed at one temperature.

    Raises:
      ValueError: the fields disagree in shape, are empty, a task id occurs twice, or the stops do
        not add up to the episodes.
    """

    temperature: float
    task_ids: tuple[str, ...]
    kinds: tuple[str, ...]
    success: np.ndarray  # bool[k, n]: k sampling seeds, n tasks
    turns: np.ndarray  # i32[k, n], model responses of the episode
    score: np.ndarray  # f32[k, n], graded outcome in [0, 1]; equals success where there is none
    valid_rate: float  # share of responses that parsed into an action, over all turns
    # the task of every episode that could not be played; counted as not solved
    failed: tuple[str, ...] = ()
    # why the episodes stopped -> how many of the k n did; empty: not known (older results)
    stops: Mapping[str, int] = dataclasses.field(default_factory=dict)
    # what was wrong -> in how many responses; those that are not named: nothing
    problems: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.task_ids)
        shapes = {f: np.shape(getattr(self, f)) for f in ("success", "turns", "score")}
        shapes["kinds"] = (len(np.atleast_2d(self.success)), len(self.kinds))
        if not n or set(shapes.values()) != {(max(1, shapes["kinds"][0]), n)}:
            raise ValueError(
                f"an EvalResult needs [seeds, tasks] arrays and one kind per task for its {n} "
                f"task_ids, got {shapes}"
            )
        if len(set(self.task_ids)) != n:
            raise ValueError("an EvalResult needs distinct task_ids; evaluate each task once")
        if self.stops and sum(self.stops.values()) != self.episodes:
            raise ValueError(
                f"the stops of an EvalResult must add up to its {self.episodes} episodes, got "
                f"{dict(self.stops)}"
            )

    @property
    def seeds(self) -> int:
        """How often each task was played."""
        return len(self.success)

    @property
    def episodes(self) -> int:
        """How many episodes were played, k n."""
        return self.success.size

    def stop_share(self, reason: str) -> float | None:
        """Share of the episodes that stopped for this reason; None where that is not known."""
        return self.stops.get(reason, 0) / self.episodes if self.stops else None

    @property
    def failed_share(self) -> float:
        """Share of the episodes that could not be played."""
        return len(self.failed) / self.episodes

    def problem_shares(self) -> dict[str, float]:
        """What was wrong -> share of the responses, the most frequent first."""
        total = max(1, int(np.sum(self.turns)))
        ordered = sorted(self.problems.items(), key=lambda item: (-item[1], item[0]))
        return {problem: count / total for problem, count in ordered}

    def rate(self) -> Interval:
        """Share of episodes won, with an interval clustered by task."""
        return clustered(self.success)

    def rate_by_kind(self) -> dict[str, Interval]:
        """The same for each task type, types in alphabetical order."""
        return {kind: clustered(self.success[:, where]) for kind, where in self._kinds().items()}

    def mean_score(self) -> Interval:
        """Mean graded outcome, with a normal interval over tasks."""
        return clustered_mean(self.score)

    def mean_score_by_kind(self) -> dict[str, Interval]:
        """The same for each task type."""
        return {kind: clustered_mean(self.score[:, where]) for kind, where in self._kinds().items()}

    def pass_at_k(self) -> Interval:
        """Share of tasks won at least once in the k tries, with its Wilson interval."""
        return wilson(int(np.sum(np.any(self.success, axis=0))), len(self.task_ids))

    def _kinds(self) -> dict[str, np.ndarray]:
        kinds = np.asarray(self.kinds)
        return {kind: kinds == kind for kind in sorted(set(self.kinds))}

    def to_json(self) -> dict[str, Any]:
        """A dict of plain Python values; `from_json` gives an equal result back."""
        return {
            "temperature": float(self.temperature),
            "task_ids": list(self.task_ids),
            "kinds": list(self.kinds),
            "success": np.asarray(self.success, bool).tolist(),
            "turns": np.asarray(self.turns, int).tolist(),
            "score": np.asarray(self.score, float).tolist(),
            "valid_rate": float(self.valid_rate),
            "failed": list(self.failed),
            "stops": {reason: int(count) for reason, count in self.stops.items()},
            "problems": {problem: int(count) for problem, count in self.problems.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Reads what `to_json` wrote; results from before `stops` or `problems` have none.

        Raises:
          ValueError: a field is missing or unknown, or a success neither true nor false.
        """
        expected = {field.name for field in dataclasses.fields(cls)}
        if set(data) | {"stops", "problems"} != expected:
            raise ValueError(f"an EvalResult has the fields {sorted(expected)}, got {sorted(data)}")
        success = np.asarray(data["success"])
        if not np.isin(success, (0, 1)).all():
            raise ValueError("an EvalResult has a success that is neither true nor false")
        return cls(
            temperature=float(data["temperature"]),
            task_ids=tuple(data["task_ids"]),
            kinds=tuple(data["kinds"]),
            success=success.astype(bool),
            turns=np.asarray(data["turns"], np.int32),
            score=np.asarray(data["score"], np.float32),
            valid_rate=float(data["valid_rate"]),
            failed=tuple(data["failed"]),
            stops=dict(data.get("stops", {})),
            problems=dict(data.get("problems", {})),
        )


def clustered(success: np.ndarray) -> Interval:
    """Share of wins among [k, n] episodes, k tries at each of n tasks, with its interval.

    Tries at one task are alike, so k n episodes tell less than k n tasks would. Wilson's interval
    is taken at the effective number of episodes p (1 - p) / var, where var is the variance of the
    mean estimated between tasks (Korn & Graubard 1998), kept between n and k n. One try: plain
    Wilson.
    """
    success = np.asarray(success, np.float64)
    tries, tasks = success.shape
    per_task, p = success.mean(axis=0), float(success.mean())
    variance = float(per_task.var(ddof=1)) / tasks if tasks > 1 else 0.0
    effective = p * (1 - p) / variance if variance else 0.0
    effective = min(max(effective, tasks), tries * tasks)
    return wilson(p * effective, effective)


def clustered_mean(values: np.ndarray) -> Interval:
    """Mean of [k, n] numbers in [0, 1] with a normal interval over the n task means."""
    per_task = np.asarray(values, np.float64).mean(axis=0)
    mean = float(per_task.mean())
    if len(per_task) < 2:
        return Interval(mean, 0.0, 1.0)
    half = Z95 * float(per_task.std(ddof=1)) / math.sqrt(len(per_task))
    return Interval(mean, max(0.0, mean - half), min(1.0, mean + half))


def wilson(successes: float, trials: float) -> Interval:
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
