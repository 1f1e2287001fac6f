"""The finished runs of a study, method by method."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from atod_jax.results.intervals import EvalResult
from atod_jax.results.runs import RunRecord
from atod_jax.studies.evidence import Estimate, difference
from atod_jax.studies.finished import Shelf
from atod_jax.studies.plan import Cell, Study

TEACHER = "teacher"  # the other side of a contrast that is no method


class Found(NamedTuple):
    """The finished runs of a cell, by seed."""

    cell: Cell
    runs: Mapping[int, RunRecord]

    def results(self, role: str, temperature: float) -> dict[int, EvalResult]:
        """By seed."""
        every = {s: run.results.get(role, {}).get(temperature) for s, run in self.runs.items()}
        return {seed: result for seed, result in every.items() if result is not None}


def found_in(study: Study, setting: str, shelf: Shelf) -> list[Found]:
    """Every method of a setting of which a run is finished.

    Raises:
      ValueError: two were evaluated on other tasks.
    """
    every = [
        Found(cell, {seed: done.run for seed, job in cell.jobs.items() if (done := shelf.get(job))})
        for cell in study.cells_of(setting)
    ]
    by_tasks = {run.task_ids: run.workdir for f in every for run in f.runs.values() if run.task_ids}
    if len(by_tasks) > 1:
        first, second, *_ = by_tasks.values()
        raise ValueError(
            f"{first} and {second} were evaluated on other tasks, which cannot be compared; make "
            "one of them again, without --known if it comes from there"
        )
    return [found for found in every if found.runs]


def by_seed(found: Sequence[Found], role: str, temperature: float) -> dict[int, EvalResult]:
    """What any of the methods has of a seed; of `start` and the teacher all have the same."""
    return {s: r for f in found for s, r in f.results(role, temperature).items()}


def temperatures(found: Sequence[Found]) -> list[float]:
    """Of the last evaluations, falling."""
    runs = [run for f in found for run in f.runs.values()]
    return sorted({t for run in runs for t in run.results.get("final", {})})[::-1]


def contrast(
    found: Sequence[Found], one: str, other: str, *, temperature: float
) -> Estimate | None:
    """Of two methods, or of one and its teacher, on the seeds that both have."""
    both = paired(found, one, other, temperature=temperature)
    if not both:
        return None
    first, second = zip(*both.values(), strict=True)
    return difference([r.success for r in first], [r.success for r in second])


def paired(
    found: Sequence[Found], one: str, other: str, *, temperature: float
) -> dict[int, tuple[EvalResult, EvalResult]]:
    """What `contrast` compares, by seed."""
    named = {f.cell.method: f for f in found}
    sides = named.get(one), named.get(one if other == TEACHER else other)
    if sides[0] is None or sides[1] is None:
        return {}
    first = sides[0].results("final", temperature)
    second = sides[1].results("teacher" if other == TEACHER else "final", temperature)
    return {seed: (first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())}


def strangers(found: Sequence[Found]) -> list[int]:
    """Seeds whose methods did not all find the same before training: where models are made anew on
    another kind of machine, sums are rounded otherwise and they become others."""
    begins: dict[tuple[int, str, float], list[EvalResult]] = {}
    for f in found:
        for seed, run in f.runs.items():
            for role in ("start", TEACHER):
                for temperature, result in run.results.get(role, {}).items():
                    begins.setdefault((seed, role, temperature), []).append(result)
    return sorted(
        {
            seed
            for (seed, _, _), results in begins.items()
            if any(not np.array_equal(r.success, results[0].success) for r in results)
        }
    )
