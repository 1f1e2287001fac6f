"""The finished runs of a study, method by method."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from atod_jax.results.intervals import EvalResult
from atod_jax.results.runs import RunRecord
from atod_jax.studies.evidence import Estimate, difference
from atod_jax.studies.plan import Cell, Study

Read = Callable[[str], RunRecord | None]  # job -> its run, None where it is not finished
TEACHER = "teacher"  # the other side of a contrast that is no method


class Found(NamedTuple):
    """The finished runs of a cell, by seed."""

    cell: Cell
    runs: Mapping[int, RunRecord]

    def results(self, role: str, temperature: float) -> dict[int, EvalResult]:
        """By seed."""
        every = {s: run.results.get(role, {}).get(temperature) for s, run in self.runs.items()}
        return {seed: result for seed, result in every.items() if result is not None}


def found_in(study: Study, setting: str, read: Read) -> list[Found]:
    """Every method of a setting of which a run is finished."""
    every = [
        Found(cell, {seed: run for seed, job in cell.jobs.items() if (run := read(job))})
        for cell in study.cells_of(setting)
    ]
    return [found for found in every if found.runs]


def temperatures(found: Sequence[Found]) -> list[float]:
    """Of the last evaluations, falling."""
    runs = [run for f in found for run in f.runs.values()]
    return sorted({t for run in runs for t in run.results.get("final", {})})[::-1]


def contrast(
    found: Sequence[Found], one: str, other: str, *, temperature: float
) -> Estimate | None:
    """Of two methods, or of one and its teacher, on the seeds that both have."""
    named = {f.cell.method: f for f in found}
    sides = named.get(one), named.get(one if other == TEACHER else other)
    if sides[0] is None or sides[1] is None:
        return None
    first = sides[0].results("final", temperature)
    second = sides[1].results("teacher" if other == TEACHER else "final", temperature)
    both = sorted(first.keys() & second.keys())
    if not both:
        return None
    return difference([first[s].success for s in both], [second[s].success for s in both])
