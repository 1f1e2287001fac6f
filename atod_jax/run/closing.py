"""What a run has found, in a few lines for the terminal."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from atod_jax.config import Run
from atod_jax.results.intervals import EvalResult, Interval, paired_difference
from atod_jax.results.report import COMPARISONS
from atod_jax.results.tables import padded_table, percent, points
from atod_jax.run import cli
from atod_jax.run.workdir import RECORD

NAMES = {"start": "before", "final": "after", "teacher": "teacher"}

References = Mapping[str, Mapping[float, EvalResult]]  # role -> temperature -> result


def outcome(name: str, result: EvalResult, teacher: EvalResult | None = None) -> str:
    """An evaluation in one line, as in `step 20: 48 % [42, 54] at T=1, 256 tasks, teacher 54`."""
    rate, tasks = result.rate(), len(result.task_ids)
    times = f" x {result.seeds}" if result.seeds > 1 else ""
    text = f"{name}: {_short(rate)} at T={result.temperature:g}, {tasks} tasks{times}"
    level = teacher and _rate_on(teacher, result.task_ids)
    return text if level is None else f"{text}, teacher {100 * level:.0f}"


def _short(rate: Interval) -> str:
    value, low, high = (f"{100 * x:.0f}" for x in (rate.value, rate.low, rate.high))
    return f"{value} % [{low}, {high}]"


def _rate_on(result: EvalResult, tasks: tuple[str, ...]) -> float | None:
    """The success at these tasks; None where not all of them were played."""
    there = np.isin(result.task_ids, tasks)
    return float(result.success[:, there].mean()) if there.sum() == len(tasks) else None


def table(references: References) -> str:
    """Success before and after, of the teacher, and the paired differences, by temperature."""
    temperatures = list(references["final"])
    rows = [
        [name, *(percent(references[role][t].rate()) for t in temperatures)]
        for role, name in NAMES.items()
        if role in references
    ]
    for one, other in COMPARISONS:
        if other in references:
            pairs = ((references[one][t], references[other][t]) for t in temperatures)
            gaps = [_difference(a, b) for a, b in pairs]
            rows.append([f"{NAMES[one]} - {NAMES[other]}", *gaps])
    tasks = len(next(iter(references["final"].values())).task_ids)
    head = [f"% of {tasks} tasks solved", *(f"T={t:g}" for t in temperatures)]
    note = "In brackets 95 % intervals; differences, in points, pair the same tasks."
    return f"{padded_table(head, rows)}\n{note}"


def _difference(one: EvalResult, other: EvalResult) -> str:
    if len(one.task_ids) < 2:
        return f"{100 * (one.rate().value - other.rate().value):+.1f}"
    return points(paired_difference(one.success, other.success))


def commands(cfg: Run, out: Path) -> Iterator[tuple[str, str]]:
    """(command line, what it does) of what comes next."""
    run = f"--checkpoint={out}"
    yield cli.command("evaluate", run, "--config.eval.passes=4"), "every task four times"
    if cfg.record:
        yield cli.command("replay", f"--episodes={out}"), "read the episodes it trained on"
    else:
        yield cli.command("play", "--player=model", run), "watch it play"
    if others := _finished_beside(out):
        place = f"--out={out.parent / 'comparison'}"
        yield cli.command("compare", place, out, *others), "beside other runs of this folder"
    elif not cfg.export:
        yield cli.command("export", run, f"--out={out / 'student'}"), "as a Hugging Face folder"


def _finished_beside(out: Path, most: int = 3) -> list[Path]:
    """The other runs of the same folder that have ended, the last first."""
    reports = sorted(out.parent.glob("*/report.md"), key=lambda path: -path.stat().st_mtime)
    found = (path.parent for path in reports if (path.parent / RECORD).is_file())
    return [path for path in found if path.name != out.name][:most]


def farewell(cfg: Run, out: Path, references: References) -> str:
    """The last words of a run."""
    lines = [f"  {line}   # {what}" for line, what in commands(cfg, out)]
    return "\n".join(["", table(references), "", "next:", *lines])
