"""What a study has found so far: study.md with a table per setting, and its pictures."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from atod_jax.results import plots
from atod_jax.results.files import write_text
from atod_jax.results.intervals import EvalResult, Interval
from atod_jax.results.runs import RunRecord, curve_points, mean_of
from atod_jax.results.tables import markdown_table
from atod_jax.studies.evidence import Estimate, detectable, difference, share
from atod_jax.studies.making import final_rate
from atod_jax.studies.plan import Cell, Job, Setting, Study

FEW = 6  # runs below which no correlation is told
TELLS = (
    "Spearman's correlation, over the runs of a setting (their number in brackets), between a sign "
    "in steps 10 to 19 and the share of held-out tasks solved at the end, mean over temperatures. "
    "Methods and seeds are mixed: what orders the methods counts as telling."
)
Read = Callable[[str], RunRecord | None]  # job -> its run, None where it is not finished
HOW = (
    "Percent of the held-out tasks solved after the last step, mean over seeds; where a setting "
    "does not say otherwise, every seed has a student, teachers and training games of its own. In "
    "brackets the interval over new **tasks** for these very runs, in braces the one over new "
    "**seeds** (Student's t): a claim about a method needs the second. 95 % each. Differences are "
    "paired by seed and task; *spread* is the standard deviation over seeds, *smallest seen* what "
    "so many seeds of that spread would show four times in five."
)
SIGNS = {
    "rollout/success": "success in training",
    "kl/verb": "gap on the first token",
    "rollout/mixed_groups": "mixed groups",
    "opd/abs_mean": "teacher's signal",
    "rl/abs_mean": "reward's signal",
    "rollout/valid_actions": "valid actions",
}


class Found(NamedTuple):
    """The finished runs of a cell, by seed."""

    cell: Cell
    runs: Mapping[int, RunRecord]

    def results(self, role: str, temperature: float) -> dict[int, EvalResult]:
        """By seed."""
        every = {s: run.results.get(role, {}).get(temperature) for s, run in self.runs.items()}
        return {seed: result for seed, result in every.items() if result is not None}


def write_study(out: Path, study: Study, read: Read) -> Path:
    """Writes study.md and a picture per setting, from the runs that are finished."""
    parts = [f"# {study.title}", study.about, HOW, _power(study)]
    for setting in study.settings:
        every = [_found(cell, read) for cell in study.cells_of(setting.name)]
        found = [f for f in every if f.runs]
        planned = sum(len(f.cell.jobs) for f in every)
        there = sum(len(f.runs) for f in every)
        parts += [f"## {setting.name}", setting.about]
        if there < planned:
            parts.append(f"{there} of {planned} runs are finished.")
        if found:
            parts += _setting(out, setting, found)
        parts += [_signals(out, name) for name in setting.signals]
    parts += [_outcome(study, read), *_tuning(study.jobs, out)]
    path = out / "study.md"
    write_text(path, "\n\n".join(filter(None, parts)) + "\n")
    return path


def _found(cell: Cell, read: Read) -> Found:
    runs = {seed: read(job) for seed, job in cell.jobs.items()}
    return Found(cell, {seed: run for seed, run in runs.items() if run is not None})


def _power(study: Study) -> str:
    """What the design can see, said before anything has run."""
    sizes = [n for n in study.sizes if n > 1]
    seen = [f"{detectable(study.spread, n):.1f} points with {n} seeds" for n in sizes]
    if not seen:
        return "With one seed a cell nothing can be said of methods, only of these runs."
    return (
        f"Where paired runs of two seeds differ by a standard deviation of {study.spread:g} "
        f"points, the smallest true difference that is seen four times in five is "
        f"{', '.join(seen)}. Smaller ones can be neither claimed nor denied here."
    )


# ---------------------------------------------------------------------------------------- a setting


def _setting(out: Path, setting: Setting, found: Sequence[Found]) -> list[str]:
    picture = f"{setting.name.replace(' ', '-')}.png"
    _draw(out / picture, setting, found)
    tables = []
    for temperature in _temperatures(found):
        tables.append(f"### {setting.name} at temperature {temperature:g}")
        tables.append(_levels(found, temperature))
        tables.append(_differences(setting, found, temperature))
    return [f"![Success over training]({picture})", *tables, _signs(setting, found)]


def _temperatures(found: Sequence[Found]) -> list[float]:
    runs = [run for f in found for run in f.runs.values()]
    return sorted({t for run in runs for t in run.results.get("final", {})})[::-1]


def _levels(found: Sequence[Found], temperature: float) -> str:
    named = {f.cell.method: f.results("final", temperature) for f in found}
    for role, name in (("start", "*before training*"), ("teacher", "*teacher*")):
        named[name] = next((r for f in found if (r := f.results(role, temperature))), {})
    estimates = {
        name: share([result.success for result in by_seed.values()])
        for name, by_seed in named.items()
        if by_seed
    }
    rows = [[name, _cell(e), _seeds(e), _spread(e)] for name, e in estimates.items()]
    return markdown_table(["method", "solved [tasks] {seeds}", "per seed", "spread"], rows)


def _differences(setting: Setting, found: Sequence[Found], temperature: float) -> str:
    named = {f.cell.method: f for f in found}
    rows = []
    for one, other in setting.contrasts:
        estimate = _difference(named, one, other, temperature=temperature)
        if estimate:
            spread, seeds = _spread(estimate), len(estimate.per_seed)
            seen = f"{detectable(float(spread), seeds):.1f}" if spread else ""
            rows.append([f"{one} - {other}", _cell(estimate, "+"), _seeds(estimate, "+"), seen])
    head = ["difference, points", "value [tasks] {seeds}", "per seed", "smallest seen"]
    return markdown_table(head, rows) if rows else ""


def _difference(
    named: Mapping[str, Found], one: str, other: str, *, temperature: float
) -> Estimate | None:
    """Of two methods, or of one and its teacher, on the seeds that both have."""
    teacher = other == "teacher"
    sides = named.get(one), named.get(one if teacher else other)
    if sides[0] is None or sides[1] is None:
        return None
    first = sides[0].results("final", temperature)
    second = sides[1].results("teacher" if teacher else "final", temperature)
    both = sorted(first.keys() & second.keys())
    if not both:
        return None
    return difference([first[s].success for s in both], [second[s].success for s in both])


def _spread(estimate: Estimate) -> str:
    """The standard deviation over seeds, points."""
    values = estimate.per_seed
    return f"{100 * float(np.std(values, ddof=1)):.1f}" if len(values) > 1 else ""


def _cell(estimate: Estimate, sign: str = "") -> str:
    tasks, seeds = (_bounds(x, sign) for x in (estimate.tasks, estimate.seeds))
    return f"{100 * estimate.value:{sign}.1f} [{tasks}] {{{seeds}}}"


def _bounds(interval: Interval, sign: str) -> str:
    if not math.isfinite(interval.low):
        return "one seed"
    return f"{100 * interval.low:{sign}.1f}, {100 * interval.high:{sign}.1f}"


def _seeds(estimate: Estimate, sign: str = "") -> str:
    return " / ".join(f"{100 * x:{sign}.1f}" for x in estimate.per_seed)


def _signs(setting: Setting, found: Sequence[Found]) -> str:
    """Early signs: means over the first ten steps and steps 10 to 19, over all seeds."""
    rows = []
    for f in found:
        cells: list[Any] = [f.cell.method]
        for name in SIGNS:
            runs = f.runs.values()
            early, later = (mean_of(runs, name, first=k, end=k + 10) for k in (0, 10))
            cells.append("" if early is None or later is None else f"{early:.2g} → {later:.2g}")
        rows.append(cells)
    head = ["steps 0-9 → 10-19", *SIGNS.values()]
    return f"### {setting.name}: early signs\n\n{markdown_table(head, rows)}"


def _signals(out: Path, name: str) -> str:
    """The tables that a job of `signals` wrote; "" where it is not finished."""
    path = out / "runs" / name / "signals.md"
    return (
        path.read_text(encoding="utf-8").strip().replace("# ", "### ", 1) if path.is_file() else ""
    )


def _outcome(study: Study, read: Read) -> str:
    """How well an early sign orders the runs of a setting by what they come to."""
    columns = {}
    for setting in study.settings:
        found = [_found(cell, read) for cell in study.cells_of(setting.name)]
        runs = [run for f in found for run in f.runs.values() if "final" in run.results]
        if len(runs) >= FEW:
            columns[setting.name] = {name: _rank_correlation(runs, name) for name in SIGNS}
    if not columns:
        return ""
    rows = [[SIGNS[name], *(cells[name] for cells in columns.values())] for name in SIGNS]
    return f"## What early signs tell\n\n{TELLS}\n\n{markdown_table(['sign', *columns], rows)}"


def _rank_correlation(runs: Sequence[RunRecord], name: str) -> str:
    """Spearman's, between a sign early in training and the success at the end, over runs."""
    early = [mean_of([run], name, first=10, end=20) for run in runs]
    ends = [float(np.mean([r.rate().value for r in run.results["final"].values()])) for run in runs]
    pairs = [(sign, end) for sign, end in zip(early, ends, strict=True) if sign is not None]
    if len({sign for sign, _ in pairs}) < FEW:
        return ""
    ranks = [stats.rankdata(side) for side in zip(*pairs, strict=True)]
    return f"{np.corrcoef(*ranks)[0, 1]:+.2f} ({len(pairs)})"


def _draw(path: Path, setting: Setting, found: Sequence[Found]) -> None:
    """Mean curves over seeds with the range of the seeds, and the teacher's mean as a level."""
    figure, axes = plots.success_figure("held-out tasks solved (%)", 4.6)
    for number, f in enumerate(found):
        by_step = curve_points(f.runs.values())
        if by_step:
            steps, style = list(by_step), plots.line_style(number)
            low, high, mean = (
                list(map(of, by_step.values())) for of in (min, max, statistics.fmean)
            )
            axes.fill_between(steps, low, high, color=style.colour, alpha=0.12, lw=0)
            axes.plot(steps, mean, color=style.colour, ls=style.dashes, label=f.cell.method)
    teachers = [
        100 * result.rate().value
        for f in found
        for result in f.results("teacher", max(_temperatures(found), default=1.0)).values()
    ]
    if teachers:
        colour, dashes = plots.level_style(0)
        axes.axhline(float(np.mean(teachers)), color=colour, ls=dashes, label="teacher")
    axes.set_title(setting.name, fontsize=11)
    figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=9)
    plots.save(figure, path)


# ----------------------------------------------------------------------------------- what was tuned


def _tuning(jobs: Sequence[Job], out: Path) -> list[str]:
    """What each value of a tuned option gave on the validation tasks."""
    named, rows = {job.name: job for job in jobs}, {}
    for job in jobs:
        for option, tried in job.tuned.items():
            for name in tried:
                try:
                    rows[name] = [name, option, named[name].options[option],
                                  f"{100 * final_rate(out, name):.1f}"]  # fmt: skip
                except FileNotFoundError:
                    continue
    if not rows:
        return []
    head = ["run", "option", "value", "solved on the validation tasks"]
    return ["## What was tuned", markdown_table(head, list(rows.values()))]
