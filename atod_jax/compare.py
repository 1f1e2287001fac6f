"""`python -m atod_jax.compare --out=DIR WORKDIR…`: several finished runs side by side.

Runs with the same algorithm and teacher are seeds of one line. Writes comparison.md (final success,
differences to the teacher, early diagnostics) and comparison.png (the success curves).
"""

import argparse
import collections
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from atod_jax.results.intervals import EvalResult, Interval, paired_difference
from atod_jax.results.report import markdown_table, percent, points, read_curve

COLOURS = {"atod": "#0b5fa5", "opd": "#c2571a", "grpo": "#3a8f3a"}
NO_TEACHER = "none"
DIAGNOSTICS = ("kl/verb", "kl/token", "rollout/mixed_groups", "rollout/valid_actions")


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished workdir."""

    algorithm: str
    teacher: str
    seed: int
    steps: int
    curve: list[tuple[int, Interval]]
    records: list[dict[str, Any]]  # one per training step
    results: Mapping[str, Mapping[float, EvalResult]]  # role -> temperature -> result

    @property
    def line(self) -> tuple[str, str]:
        """Runs that differ in the seed only share this."""
        return self.teacher, self.algorithm


def read_run(workdir: Path) -> Run:
    """Reads a workdir.

    Raises:
      FileNotFoundError: it holds no finished run.
    """
    record = workdir / "run_config.json"
    if not record.is_file() or not list((workdir / "evaluations").glob("final-T*.json")):
        raise FileNotFoundError(f"{workdir} holds no finished run; train it to the end first")
    cfg = json.loads(record.read_text())
    results: dict[str, dict[float, EvalResult]] = collections.defaultdict(dict)
    for path in sorted((workdir / "evaluations").glob("*-T*.json")):
        role, _, temperature = path.stem.rpartition("-T")
        results[role][float(temperature)] = EvalResult.from_json(json.loads(path.read_text()))
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    algorithm = cfg["algorithm"]["name"]
    taught = algorithm != "grpo"  # a grpo run may name a teacher, for its transcripts only
    return Run(
        algorithm=algorithm,
        teacher=(taught and Path(cfg["teacher"]["path"]).name) or NO_TEACHER,
        seed=cfg["seed"],
        steps=cfg["total_steps"],
        curve=read_curve(workdir),
        records=[r for r in map(json.loads, lines) if "loss/total" in r],
        results=results,
    )


def compare(runs: Sequence[Run], out: Path) -> Path:
    """Writes comparison.md and comparison.png; returns the page's path."""
    lines: dict[tuple[str, str], list[Run]] = collections.defaultdict(list)
    for run in sorted(runs, key=lambda r: (r.line, r.seed)):
        lines[run.line].append(run)
    out.mkdir(parents=True, exist_ok=True)
    _draw(out / "comparison.png", lines)
    count = len(next(iter(runs[0].results["final"].values())).task_ids)
    parts = [
        "# Algorithms side by side",
        "![Share of held-out tasks solved over training steps](comparison.png)",
        f"## After training\n\nPercent of {count} held-out tasks solved; one value per seed. "
        "The difference to the teacher pairs the same tasks and pools the seeds; its 95 % interval "
        "speaks of new tasks, not of new training seeds.",
        *(_final_table(lines, t) for t in sorted(runs[0].results["final"], reverse=True)),
        "## Success along the way\n\nMean over seeds, percent, at the temperature of the curve.",
        _curve_table(lines),
        "## Early signs\n\nMean over seeds and over ten steps. The KL on the first token of a "
        "command (verb) halves early in runs that work; without mixed groups there is no reward "
        "signal.",
        _diagnostics_table(lines),
    ]
    page = out / "comparison.md"
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return page


Lines = Mapping[tuple[str, str], Sequence[Run]]


def _final_table(lines: Lines, temperature: float) -> str:
    rows = []
    for (teacher, algorithm), runs in lines.items():
        final = [run.results["final"][temperature] for run in runs]
        start = runs[0].results["start"][temperature].rate()
        row = [algorithm, teacher, percent(start)]
        row.append(" / ".join(f"{100 * result.rate().value:.1f}" for result in final))
        judge = runs[0].results.get("teacher", {}).get(temperature)
        if judge and teacher != NO_TEACHER:
            gap = paired_difference(np.concatenate([r.success for r in final]), judge.success)
            row += [percent(judge.rate()), points(gap)]
        rows.append(row + [""] * (6 - len(row)))
    header = ["algorithm", "teacher", "start", "final, per seed", "teacher solves", "minus teacher"]
    return f"Temperature {temperature:g}:\n\n" + markdown_table(header, rows)


def _curve_table(lines: Lines) -> str:
    steps = sorted({step for runs in lines.values() for run in runs for step, _ in run.curve})
    rows = [
        [algorithm, teacher, *(_mean_at(runs, step) for step in steps)]
        for (teacher, algorithm), runs in lines.items()
    ]
    return markdown_table(["algorithm", "teacher", *map(str, steps)], rows)


def _mean_at(runs: Sequence[Run], step: int) -> str:
    values = [rate.value for run in runs for s, rate in run.curve if s == step]
    return f"{100 * np.mean(values):.0f}" if values else ""


def _diagnostics_table(lines: Lines) -> str:
    rows = []
    for (teacher, algorithm), runs in lines.items():
        for name in DIAGNOSTICS:
            if name not in runs[0].records[0]:
                continue
            series = np.mean([[r[name] for r in run.records] for run in runs], axis=0)
            tens = [series[i : i + 10].mean() for i in (0, 10, 20)]
            cells = [f"{x:.2f}" for x in [*tens, series[-10:].mean()]]
            rows.append([algorithm, teacher, name, *cells])
    return markdown_table(
        ["algorithm", "teacher", "", "steps 0-9", "10-19", "20-29", "last 10"], rows
    )


def _draw(path: Path, lines: Lines) -> None:
    """One panel per teacher, runs without one in all; thin lines are seeds, thick their mean."""
    teachers = sorted({teacher for teacher, _ in lines} - {NO_TEACHER}) or [NO_TEACHER]
    figure = Figure(figsize=(1.4 + 4.6 * len(teachers), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(teachers), sharey=True, squeeze=False)[0]
    for panel, teacher in zip(panels, teachers):
        for (of, algorithm), runs in lines.items():
            if of in (teacher, NO_TEACHER):
                _draw_line(panel, algorithm, runs)
        panel.set_title(teacher, fontsize=11)
        panel.set_xlabel("training step")
        panel.set_ylim(0, 100)
        panel.grid(axis="y", color="0.88", lw=0.8)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("held-out tasks solved (%)")
    named = {
        label: handle
        for panel in panels
        for handle, label in zip(*panel.get_legend_handles_labels())
    }
    figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(path, dpi=160)


def _draw_line(panel: Axes, algorithm: str, runs: Sequence[Run]) -> None:
    colour = COLOURS.get(algorithm, "#555555")
    curves = [[100 * rate.value for _, rate in run.curve] for run in runs]
    steps = [step for step, _ in runs[0].curve]
    for curve in curves:
        panel.plot(steps, curve, color=colour, lw=0.8, alpha=0.5)
    panel.plot(steps, np.mean(curves, axis=0), color=colour, lw=2.2, label=algorithm)
    judge = runs[0].results.get("teacher")
    if judge and algorithm == "atod":
        level = 100 * max(judge.items())[1].rate().value
        panel.axhline(level, color="0.35", lw=1.4, ls=(0, (5, 3)), label="teacher")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Compares finished runs.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the page and picture")
    parser.add_argument("workdirs", type=Path, nargs="+")
    arguments = parser.parse_args()
    try:
        print(compare([read_run(w) for w in arguments.workdirs], arguments.out))
    except FileNotFoundError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
