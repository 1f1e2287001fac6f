"""Early signs: what a run shows in its first steps, and whether that tells what it comes to."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from atod_jax.results.runs import RunRecord, mean_of
from atod_jax.results.tables import markdown_table
from atod_jax.studies.finished import SIGNS
from atod_jax.studies.found import TEACHER, Found

FEW = 6  # runs below which no correlation is told
TELLS = (
    "Spearman's correlation, over the runs of a setting (their number in brackets), between a sign "
    "in steps 10 to 19 and the share of held-out tasks solved at the end, mean over temperatures. "
    "Methods and seeds are mixed: what orders the methods counts as telling."
)
DISTANCE = "The same, with how far above its own teacher a run ends:"


def signs(setting: str, found: Sequence[Found]) -> str:
    """Means over the first ten steps and steps 10 to 19, over all seeds."""
    rows = []
    for f in found:
        cells: list[Any] = [f.cell.method]
        for name in SIGNS:
            runs = f.runs.values()
            early, later = (mean_of(runs, name, first=k, end=k + 10) for k in (0, 10))
            cells.append("" if early is None or later is None else f"{early:.2g} → {later:.2g}")
        rows.append(cells)
    head = ["steps 0-9 → 10-19", *SIGNS.values()]
    return f"### {setting}: early signs\n\n{markdown_table(head, rows)}"


def outcome(every: Mapping[str, Sequence[Found]], axis: Sequence[str] = ()) -> str:
    """How well an early sign orders the runs of a setting by what they come to, and by how far that
    is from their teacher; the latter over the settings of `axis` together, too."""
    ended = {
        setting: [run for f in found for run in f.runs.values() if "final" in run.results]
        for setting, found in every.items()
    }
    taught = {s: [run for run in runs if TEACHER in run.results] for s, runs in ended.items()}
    if along := [run for setting in axis for run in taught.get(setting, ())]:
        taught[", ".join(axis)] = along
    ends = _correlations(ended, lambda run: _solved(run, "final"))
    above = _correlations(taught, lambda run: _solved(run, "final") - _solved(run, TEACHER))
    if not ends:
        return ""
    parts = ["## What early signs tell", TELLS, ends] + [DISTANCE, above] * bool(above)
    return "\n\n".join(parts)


def _correlations(
    settings: Mapping[str, Sequence[RunRecord]], end: Callable[[RunRecord], float]
) -> str:
    enough = {setting: runs for setting, runs in settings.items() if len(runs) >= FEW}
    if not enough:
        return ""
    rows = [
        [label, *(_rank_correlation(runs, name, end) for runs in enough.values())]
        for name, label in SIGNS.items()
    ]
    return markdown_table(["sign", *enough], rows)


def _solved(run: RunRecord, role: str) -> float:
    return float(np.mean([result.rate().value for result in run.results[role].values()]))


def _rank_correlation(
    runs: Sequence[RunRecord], name: str, end: Callable[[RunRecord], float]
) -> str:
    early = [mean_of([run], name, first=10, end=20) for run in runs]
    pairs = [(sign, end(run)) for sign, run in zip(early, runs, strict=True) if sign is not None]
    if len(pairs) < FEW or any(len(set(side)) < 2 for side in zip(*pairs, strict=True)):
        return ""
    ranks = [stats.rankdata(side) for side in zip(*pairs, strict=True)]
    return f"{np.corrcoef(*ranks)[0, 1]:+.2f} ({len(pairs)})"
