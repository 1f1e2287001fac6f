"""Early signs: what a run shows in its first steps, and whether that tells what it comes to."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from atod_jax.results.runs import RunRecord, mean_of
from atod_jax.results.tables import markdown_table
from atod_jax.studies.finished import SIGNS
from atod_jax.studies.found import Found

FEW = 6  # runs below which no correlation is told
TELLS = (
    "Spearman's correlation, over the runs of a setting (their number in brackets), between a sign "
    "in steps 10 to 19 and the share of held-out tasks solved at the end, mean over temperatures. "
    "Methods and seeds are mixed: what orders the methods counts as telling."
)


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


def outcome(every: Mapping[str, Sequence[Found]]) -> str:
    """How well an early sign orders the runs of a setting by what they come to."""
    columns = {}
    for setting, found in every.items():
        runs = [run for f in found for run in f.runs.values() if "final" in run.results]
        if len(runs) >= FEW:
            columns[setting] = {name: _rank_correlation(runs, name) for name in SIGNS}
    if not columns:
        return ""
    rows = [[SIGNS[name], *(cells[name] for cells in columns.values())] for name in SIGNS]
    return f"## What early signs tell\n\n{TELLS}\n\n{markdown_table(['sign', *columns], rows)}"


def _rank_correlation(runs: Sequence[RunRecord], name: str) -> str:
    early = [mean_of([run], name, first=10, end=20) for run in runs]
    ends = [float(np.mean([r.rate().value for r in run.results["final"].values()])) for run in runs]
    pairs = [(sign, end) for sign, end in zip(early, ends, strict=True) if sign is not None]
    if len(pairs) < FEW or any(len(set(side)) < 2 for side in zip(*pairs, strict=True)):
        return ""
    ranks = [stats.rankdata(side) for side in zip(*pairs, strict=True)]
    return f"{np.corrcoef(*ranks)[0, 1]:+.2f} ({len(pairs)})"
