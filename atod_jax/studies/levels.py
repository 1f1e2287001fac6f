"""How differences between methods change with the teacher's level, over settings that differ in
their teacher only."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from atod_jax.results import plots
from atod_jax.results.tables import markdown_table
from atod_jax.studies.evidence import bounds, over_seeds
from atod_jax.studies.found import TEACHER, Found, by_seed, contrast, temperatures
from atod_jax.studies.plan import Study

PICTURE = "levels.png"
TITLE = "Against the teacher's level"
ABOUT = (
    "Settings that differ in their teacher only, from the worst to the best. Lines join the means "
    "over seeds at the teachers' mean level, a dot is a seed; in braces the 95 % interval over "
    "**seeds**. Temperature "
)


class Level(NamedTuple):
    """A setting: what its teachers solve, and how methods differ there; points, one a seed."""

    setting: str
    teacher: list[float]
    differences: dict[str, list[float]]


def levels(study: Study, every: Mapping[str, Sequence[Found]], *, out: Path) -> str:
    """Draws OUT/levels.png; returns the section, "" where fewer than two settings have runs."""
    pairs = [s.contrasts for s in study.settings if s.name in study.axis]
    common = [p for p in pairs[0] if all(p in other for other in pairs)] if pairs else []
    along = [every[name] for name in study.axis]
    temperature = max((t for found in along for t in temperatures(found)), default=1.0)
    known = []
    for name, found in zip(study.axis, along, strict=True):
        teacher = by_seed(found, TEACHER, temperature)
        estimates = {
            f"{one} - {other}": [100 * x for x in e.per_seed]
            for one, other in common
            if (e := contrast(found, one, other, temperature=temperature))
        }
        if estimates and teacher:
            solved = [100 * r.rate().value for r in teacher.values()]
            known.append(Level(name, solved, estimates))
    if len(known) < 2:
        return ""
    names = list(dict.fromkeys(name for level in known for name in level.differences))
    rows = [
        [level.setting, _text(level.teacher, ""),
         *(_text(level.differences[n], "+") if n in level.differences else "" for n in names)]
        for level in known
    ]  # fmt: skip
    _draw(out / PICTURE, known, names)
    table = markdown_table(["setting", "teacher {seeds}", *(f"{n} {{seeds}}" for n in names)], rows)
    return f"## {TITLE}\n\n{ABOUT}{temperature:g}.\n\n![{TITLE}]({PICTURE})\n\n{table}"


def _draw(path: Path, known: Sequence[Level], names: Sequence[str]) -> None:
    figure, axes = plots.success_figure("difference (points)")
    for number, name in enumerate(names):
        there = [level for level in known if name in level.differences]
        style, x = plots.line_style(number), [np.mean(level.teacher) for level in there]
        y = [np.mean(level.differences[name]) for level in there]
        axes.plot(x, y, color=style.colour, ls=style.dashes, label=name)
        for at, level in zip(x, there, strict=True):
            seeds = level.differences[name]
            axes.plot([at] * len(seeds), seeds, "o", color=style.colour, ms=4, alpha=0.6)
    axes.axhline(0.0, color="0.5", lw=0.8)
    axes.autoscale(axis="y")
    axes.set_xlabel("held-out tasks that the teacher solves (%)")
    axes.set_title(TITLE, fontsize=11)
    figure.legend(loc="outside lower left", ncols=3, frameon=False, fontsize=9)
    plots.save(figure, path)


def _text(values: Sequence[float], sign: str) -> str:
    x = over_seeds([value / 100 for value in values])
    return f"{100 * x.value:{sign}.1f} {{{bounds(x, sign)}}}"
