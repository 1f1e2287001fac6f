"""Several runs side by side: curves, final success, differences to the teacher.

    python -m atod_jax.compare --out=runs/table runs/a runs/b mine=runs/c

Runs that differ in their seed only are one line; a line is called after the options in which it
differs from the others, or NAME. Environments, splits and sets of tasks each have a section of
their own. Runs may still be going on. Writes comparison.md and a picture per section.
"""

import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from atod_jax.results import plots
from atod_jax.results.files import write_text
from atod_jax.results.intervals import EvalResult, Interval, clustered, paired_difference
from atod_jax.results.runs import (
    Group,
    RunRecord,
    Section,
    curve_points,
    curve_temperature,
    mean_of,
    repeated_seeds,
    sections,
    short,
)
from atod_jax.results.tables import markdown_table, percent, points
from atod_jax.run import cli
from atod_jax.run.workdir import read_record

DIAGNOSTICS = ("kl/verb", "kl/token", "rollout/mixed_groups", "rollout/valid_actions")
ROLES = ("start", "final", "teacher")
MOST_COLUMNS = 12  # of the table of curves
LEGEND_LINE, TWO_COLUMNS = 0.19, 45  # inches; characters that fit half the picture
AFTER = (
    "Percent of the tasks solved, seeds pooled, with 95 % intervals. They speak of new tasks, not "
    "of new training seeds; the difference to the teacher pairs the same tasks."
)
ALONG = "Mean over the seeds that have the point, percent, at the temperature of the curve."
EARLY = (
    "Mean over seeds and over ten steps. The KL on the first token of a command (verb) halves "
    "early in runs that work; without mixed groups there is no reward signal."
)


def compare(runs: Sequence[RunRecord], out: Path) -> Path:
    """Writes comparison.md and a picture per section with a curve; returns the page's path.

    Raises:
      ValueError: one name for different settings, or one folder twice.
    """
    if len({run.workdir.resolve() for run in runs}) < len(runs):
        raise ValueError("a workdir is named twice; name each run once")
    parts = ["# Runs side by side"]
    for number, section in enumerate(sections(runs), 1):
        picture = f"comparison-{number}.png" if number > 1 else "comparison.png"
        drawn = any(run.curve for run in section.runs)  # none: evaluated before and after only
        parts += _page(section, picture if drawn else "")
        if drawn:
            draw(out / picture, section)
    page = out / "comparison.md"
    write_text(page, "\n\n".join(parts) + "\n")
    return page


def seed_warnings(runs: Sequence[RunRecord]) -> list[str]:
    """A sentence for every seed that occurs more than once in a group."""
    return [text for section in sections(runs) for text in _warnings(section)]


def _warnings(section: Section) -> list[str]:
    return [
        f"{group.label}: seed {seed} is there {len(same)} times "
        f"({', '.join(str(run.workdir) for run in same)}); equal seeds are no further evidence"
        for group in section.groups
        for seed, same in repeated_seeds(group).items()
    ]


# --------------------------------------------------------------------------------------------- page


def _page(section: Section, picture: str) -> list[str]:
    tables = [
        f"Temperature {temperature:g}:\n\n{_final_table(section, temperature)}"
        for temperature in section.temperatures
    ]
    return [
        f"## {section.heading}",
        *(f"**Warning:** {text}." for text in _warnings(section)),
        *([f"![Share of held-out tasks solved over training steps]({picture})"] * bool(picture)),
        _runs_table(section),
        *([f"### After training\n\n{AFTER}", *tables] if tables else []),
        *_titled("Success along the way", ALONG, _curve_table(section)),
        *_titled("Early signs", EARLY, _diagnostics_table(section)),
    ]


def _titled(title: str, text: str, table: str) -> list[str]:
    return [f"### {title}\n\n{text}", table] if table else []


def _runs_table(section: Section) -> str:
    rows = [
        [group.label, run.seed, _progress(run), _last_point(run), run.workdir]
        for group in section.groups
        for run in group.runs
    ]
    return markdown_table(["line", "seed", "steps", "end of the curve", "folder"], rows)


def _progress(run: RunRecord) -> str:
    total = run.definition.get("total_steps", run.steps)
    return str(run.steps) if run.finished else f"{run.steps} of {total}, unfinished"


def _last_point(run: RunRecord) -> str:
    if not run.curve:
        return ""
    step, rate = run.curve[-1]
    return f"{percent(rate)} at step {step}"


def _final_table(section: Section, temperature: float) -> str:
    header = ["line", "start", "final", "per seed", "teacher", "final minus teacher"]
    there = [g for g in section.groups if any(g.results(role, temperature) for role in ROLES)]
    return markdown_table(header, [_final_row(group, temperature) for group in there])


def _final_row(group: Group, temperature: float) -> list[str]:
    final, teacher = (group.results(role, temperature) for role in ("final", "teacher"))
    gap = ""
    if final and teacher and len(final[0].task_ids) > 1:
        gap = points(paired_difference(_success(final), _success(teacher)))
    finals = " / ".join(_final(run, temperature) for run in group.runs)
    start = group.results("start", temperature)
    return [group.label, _pooled(start), _pooled(final), finals, _pooled(teacher), gap]


def _final(run: RunRecord, temperature: float) -> str:
    result = run.results.get("final", {}).get(temperature)
    if result is not None:
        return f"{100 * result.rate().value:.1f}"
    return "-" if run.finished else "unfinished"


def _success(results: Sequence[EvalResult]) -> np.ndarray:
    return np.concatenate([result.success for result in results])


def _pooled(results: Sequence[EvalResult]) -> str:
    return percent(clustered(_success(results))) if results else ""


def _curve_table(section: Section) -> str:
    every = sorted({step for run in section.runs for step, _ in run.curve})
    steps = _some(every, MOST_COLUMNS)
    means = [(group.label, dict(_mean_curve(group))) for group in section.groups]
    rows = [[label, *(_cell(curve.get(step), ".0f") for step in steps)] for label, curve in means]
    return markdown_table(["line", *steps], rows) if steps else ""


def _mean_curve(group: Group) -> list[tuple[int, float]]:
    """(step, percent): the mean over the seeds that have the step."""
    return [(step, statistics.fmean(x)) for step, x in curve_points(group.runs).items()]


def _some(steps: Sequence[int], count: int) -> list[int]:
    """At most `count` of the steps, evenly chosen, the first and the last among them."""
    if len(steps) <= count:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count)]


def _diagnostics_table(section: Section) -> str:
    spans = {"steps 0-9": (0, 10), "10-19": (10, 20), "20-29": (20, 30)}
    rows = [
        [group.label, name,
         *(_cell(mean_of(group.runs, name, first=a, end=b), ".2f") for a, b in spans.values()),
         _cell(mean_of(group.runs, name, first=-10), ".2f")]
        for group in section.groups
        for name in DIAGNOSTICS
        if any(record.get(name) is not None for run in group.runs for record in run.training)
    ]  # fmt: skip
    return markdown_table(["line", "", *spans, "last 10"], rows) if rows else ""


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


# ------------------------------------------------------------------------------------------ picture


def draw(path: Path, section: Section) -> None:
    """The curves of a section: seeds thin, their mean thick, teachers as levels."""
    levels = _teacher_levels(section)
    names = [_legend(group) for group in section.groups] + list(levels)
    columns = 2 if max(map(len, names)) <= TWO_COLUMNS else 1
    height = 4.2 + LEGEND_LINE * -(-len(names) // columns)
    figure, axes = plots.success_figure("held-out tasks solved (%)", height)
    for number, group in enumerate(section.groups):
        _draw_group(axes, group, plots.line_style(number))
    for number, (label, rate) in enumerate(levels.items()):
        colour, dashes = plots.level_style(number)
        axes.axhline(100 * rate.value, color=colour, ls=dashes, lw=1.4, label=label)
    axes.set_title(section.heading, fontsize=11)
    figure.legend(
        loc="outside lower left", ncols=columns, frameon=False, fontsize=9, handlelength=3.5
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.save(figure, path)


def _legend(group: Group) -> str:
    missing, count = sum(not run.finished for run in group.runs), len(group.runs)
    if not missing:
        return group.label
    return f"{group.label} ({f'{missing} of {count} ' if count > 1 else ''}unfinished)"


def _draw_group(axes: Axes, group: Group, style: plots.Style) -> None:
    for run in group.runs if len(group.runs) > 1 else ():
        steps, values = [step for step, _ in run.curve], [100 * rate.value for _, rate in run.curve]
        axes.plot(steps, values, color=style.colour, lw=0.8, alpha=0.45)
    mean = _mean_curve(group)
    axes.plot(
        [step for step, _ in mean], [value for _, value in mean], color=style.colour,
        ls=style.dashes, lw=2.2, marker="o", ms=3.5, label=_legend(group),
    )  # fmt: skip


def _teacher_levels(section: Section) -> dict[str, Interval]:
    """What each teacher solves, at the temperature of the curve or the one next to it."""
    taught = [run for run in section.runs if run.results.get("teacher")]
    paths = list(dict.fromkeys(run.teacher for run in taught))
    levels = {}
    for path, name in zip(paths, short(paths, "/"), strict=True):
        results: dict[float, list[EvalResult]] = {}
        runs = [run for run in taught if run.teacher == path]
        for run in runs:
            for temperature, result in run.results["teacher"].items():
                results.setdefault(temperature, []).append(result)
        wanted, nearest = curve_temperature(runs[0], results)
        label = f"teacher: {name or '?'}" + (
            f" at temperature {nearest:g}" if nearest != wanted else ""
        )
        levels[label] = clustered(_success(results[nearest]))
    return levels


def main(arguments: Iterable[str] | None = None) -> None:
    """Command line."""
    parser = cli.Parser("compare", __doc__)
    add, line = parser.add_argument, "folder of a run of train; NAME is what its line is called"
    add("--out", type=Path, required=True, metavar="DIR", help="folder for comparison.md and .png")
    add("runs", nargs="+", metavar="[NAME=]WORKDIR", help=line)
    with cli.short_errors():
        given = parser.read(arguments)
        runs = [read_record(argument) for argument in given.runs]
        for text in seed_warnings(runs):
            print(f"warning: {text}", file=sys.stderr)
        print(compare(runs, given.out))


if __name__ == "__main__":
    main()
