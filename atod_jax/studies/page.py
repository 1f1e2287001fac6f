"""What a study has found so far: study.md with a table per setting, and its pictures."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from atod_jax.results import plots
from atod_jax.results.files import write_text
from atod_jax.results.runs import curve_points
from atod_jax.results.tables import markdown_table
from atod_jax.studies.evidence import Estimate, bounds, detectable, share
from atod_jax.studies.finished import Shelf
from atod_jax.studies.found import (
    TEACHER,
    Found,
    by_seed,
    contrast,
    found_in,
    strangers,
    temperatures,
)
from atod_jax.studies.levels import levels
from atod_jax.studies.overview import overview, pooled
from atod_jax.studies.plan import Job, Setting, Study, best_of, by_value, mean_by_value
from atod_jax.studies.signs import outcome, signs

HOW = (
    "Percent of the held-out tasks solved after the last step, mean over seeds; where a setting "
    "does not say otherwise, every seed has a student, teachers and training games of its own. In "
    "brackets the interval over new **tasks** for these very runs, in braces the one over new "
    "**seeds** (Student's t): a claim about a method needs the second. 95 % each. Differences are "
    "paired by seed and task; *spread* is the standard deviation over seeds, *smallest seen* what "
    "so many seeds of that spread would show four times in five."
)


RANGES = 3  # in a picture; more hide each other


def write_study(study: Study, shelf: Shelf) -> Path:
    """Writes study.md and a picture per setting, from the runs that are finished."""
    parts, later = [f"# {study.title}", study.about, HOW, power(study)], []
    every = {setting.name: found_in(study, setting.name, shelf) for setting in study.settings}
    parts.append(overview(study, every))
    for setting in study.settings:
        if found := every[setting.name]:
            planned = sum(len(cell.jobs) for cell in study.cells_of(setting.name))
            parts += _section(setting, found, planned=planned, shelf=shelf)
        else:
            later.append(f"{setting.name} ({setting.about.rstrip('.')})")
    parts += [levels(study, every, out=shelf.out), pooled(study, every), outcome(every, study.axis)]
    parts += _tuning(study.jobs, shelf)
    if later:
        parts.append(f"Planned, and not begun: {'; '.join(later)}.")
    runs = [done for job in study.jobs if (done := shelf.get(job.name))]
    hours = sum(done.mark.seconds for done in runs) / 3600
    parts.append(f"{len(runs)} of {len(study.jobs)} runs took {hours:.1f} hours, one by one.")
    path = shelf.out / "study.md"
    write_text(path, "\n\n".join(filter(None, parts)) + "\n")
    return path


def power(study: Study) -> str:
    """What the design can see, said before anything has run."""
    sizes = [n for n in study.sizes if n > 1]
    seen = [f"{detectable(study.spread, n):.1f} points with {n} seeds" for n in sizes]
    if not seen:
        return "With one seed a cell nothing can be said of methods, only of these runs."
    intervals = sum(len(setting.contrasts) for setting in study.settings)
    return (
        f"Where the difference of two methods varies from seed to seed by a standard deviation of "
        f"{study.spread:g} points, the smallest true difference that is seen four times in five is "
        f"{', '.join(seen)} (in fact: `smallest seen` of each difference). A true one that is "
        "smaller will often be missed: an interval that holds zero does not deny it. There are "
        f"{intervals} differences at each temperature, of which one in twenty excludes zero by "
        "chance alone."
    )


# ---------------------------------------------------------------------------------------- a setting


def _section(setting: Setting, found: Sequence[Found], *, planned: int, shelf: Shelf) -> list[str]:
    parts = [f"## {setting.name}", setting.about]
    if (there := sum(len(f.runs) for f in found)) < planned:
        parts.append(f"{there} of {planned} runs are finished.")
    if missing := ", ".join(_unfinished(found)):
        parts.append(f"Without an evaluation at the end, and so in no table: {missing}.")
    if others := ", ".join(map(str, strangers(found))):
        parts.append(
            f"Before training not all methods of seed {others} solved the same tasks: they began "
            "with other models, or on a machine that rounds otherwise. What they differ by may be "
            "that too."
        )
    picture = f"{setting.name.replace(' ', '-')}.png"
    _draw(shelf.out / picture, setting, found)
    parts.append(f"![Success over training]({picture})")
    for temperature in temperatures(found):
        parts.append(f"### {setting.name} at temperature {temperature:g}")
        parts.append(_levels(found, temperature))
        parts.append(_differences(setting, found, temperature))
    done = filter(None, map(shelf.get, setting.signals))
    told = [run.tables.strip().replace("# ", "### ", 1) for run in done]
    return [*parts, signs(setting.name, found), *told]


def _unfinished(found: Sequence[Found]) -> list[str]:
    return [
        f"{f.cell.method}, seed {seed}"
        for f in found
        for seed, run in f.runs.items()
        if not run.results.get("final")
    ]


def _levels(found: Sequence[Found], temperature: float) -> str:
    named = {f.cell.method: f.results("final", temperature) for f in found}
    for role, name in (("start", "*before training*"), (TEACHER, "*teacher*")):
        named[name] = by_seed(found, role, temperature)
    estimates = {
        name: share([results[seed].success for seed in sorted(results)])
        for name, results in named.items()
        if results
    }
    rows = [
        [name, _cell(e), _seeds(e), f"{100 * _spread(e):.1f}" if len(e.per_seed) > 1 else ""]
        for name, e in estimates.items()
    ]
    return markdown_table(["method", "solved [tasks] {seeds}", "per seed", "spread"], rows)


def _differences(setting: Setting, found: Sequence[Found], temperature: float) -> str:
    rows = []
    for one, other in setting.contrasts:
        estimate = contrast(found, one, other, temperature=temperature)
        if estimate:
            least = 100 * detectable(_spread(estimate), len(estimate.per_seed))
            seen = f"{least:.1f}" if least <= 100 else "nothing"
            rows.append([f"{one} - {other}", _cell(estimate, "+"), _seeds(estimate, "+"), seen])
    head = ["difference, points", "value [tasks] {seeds}", "per seed", "smallest seen"]
    return markdown_table(head, rows) if rows else ""


def _spread(estimate: Estimate) -> float:
    """The standard deviation over seeds; nan of a single one."""
    values = estimate.per_seed
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def _cell(estimate: Estimate, sign: str = "") -> str:
    tasks, seeds = (bounds(x, sign) for x in (estimate.tasks, estimate.seeds))
    return f"{100 * estimate.value:{sign}.1f} [{tasks}] {{{seeds}}}"


def _seeds(estimate: Estimate, sign: str = "") -> str:
    return " / ".join(f"{100 * x:{sign}.1f}" for x in estimate.per_seed)


def _draw(path: Path, setting: Setting, found: Sequence[Found]) -> None:
    """Mean curves over seeds, the range of the seeds of the first methods, and the teacher's mean
    as a level."""
    figure, axes = plots.success_figure("held-out tasks solved (%)", 4.6)
    most = max(len(f.runs) for f in found)
    for number, f in enumerate(found):
        by_step = curve_points(f.runs.values())
        if by_step:
            steps, style = list(by_step), plots.line_style(number)
            low, high, mean = (
                list(map(of, by_step.values())) for of in (min, max, statistics.fmean)
            )
            if number < RANGES:
                axes.fill_between(steps, low, high, color=style.colour, alpha=0.12, lw=0)
            fewer = f" ({len(f.runs)} seeds)" if len(f.runs) < most else ""  # other models too
            label = f"{f.cell.method}{fewer}"
            axes.plot(steps, mean, color=style.colour, ls=style.dashes, label=label)
    temperature = max(temperatures(found), default=1.0)
    teachers = by_seed(found, TEACHER, temperature)
    if teachers:
        colour, dashes = plots.level_style(0)
        mean = statistics.fmean(100 * r.rate().value for r in teachers.values())
        axes.axhline(mean, color=colour, ls=dashes, label="teacher")
    over = f"mean over {most} seeds, and their range" if most > 1 else "one seed"
    axes.set_title(f"{setting.name}: {over}", fontsize=11)
    figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=9)
    plots.save(figure, path)


# ----------------------------------------------------------------------------------- what was tuned


def _tuning(jobs: Sequence[Job], shelf: Shelf) -> list[str]:
    """What each value of a tuned option gave on the validation tasks."""
    named, rows = {job.name: job for job in jobs}, []
    sweeps = {(option, tried) for job in jobs for option, tried in job.tuned.items()}
    for option, tried in sorted(sweeps):
        done = shelf.rates(tried)
        means = mean_by_value(done, option, named)
        for value, names in by_value(done, option, named).items():
            each = ", ".join(f"{name} {100 * done[name]:.1f}" for name in names)
            best = len(done) == len(tried) and value == best_of(means)
            taken = "taken" if best else ""
            rows.append([option, value, each, f"{100 * means[value]:.1f}", taken])
    if not rows:
        return []
    head = ["option", "value", "solved on the validation tasks, by run", "mean", ""]
    return ["## What was tuned", markdown_table(head, rows)]
