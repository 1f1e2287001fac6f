"""How differences between methods change with the teacher's level, over settings that differ in
their teacher only."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from atod_jax.results import plots
from atod_jax.results.tables import markdown_table
from atod_jax.studies.evidence import over_seeds_text
from atod_jax.studies.found import TEACHER, Found, by_seed, paired, temperatures
from atod_jax.studies.plan import Study, common_contrasts

PICTURE = "levels.png"
TITLE = "Against the teacher's level"
ABOUT = (
    "Settings that differ in their teacher only, from the worst to the best. Lines join the means "
    "over seeds at the teachers' mean level, a dot is a seed at its own teacher's; in braces the "
    "95 % interval over **seeds**. Temperature "
)


class Level(NamedTuple):
    """A setting: what its teachers solve, and how methods differ there; shares by seed."""

    setting: str
    teacher: Mapping[int, float]
    differences: Mapping[str, Mapping[int, float]]


def levels(study: Study, every: Mapping[str, Sequence[Found]], *, out: Path) -> str:
    """Draws OUT/levels.png; returns the section, "" where fewer than two settings have runs."""
    if not study.axis:
        return ""
    common = common_contrasts([s for s in study.settings if s.name in study.axis])
    along = [every[name] for name in study.axis]
    temperature = max((t for found in along for t in temperatures(found)), default=1.0)
    known = []
    for name, found in zip(study.axis, along, strict=True):
        teacher = by_seed(found, TEACHER, temperature)
        by_pair = {
            f"{one} - {other}": {
                seed: a.rate().value - b.rate().value
                for seed, (a, b) in paired(found, one, other, temperature=temperature).items()
            }
            for one, other in common
        }
        differences = {pair: by for pair, by in by_pair.items() if by}
        if differences and teacher:
            solved = {seed: result.rate().value for seed, result in teacher.items()}
            known.append(Level(name, solved, differences))
    if len(known) < 2:
        return ""
    names = list(dict.fromkeys(name for level in known for name in level.differences))
    rows = [
        [level.setting, over_seeds_text([*level.teacher.values()]),
         *(over_seeds_text([*level.differences[n].values()], "+") if n in level.differences else ""
           for n in names)]
        for level in known
    ]  # fmt: skip
    _draw(out / PICTURE, known, names)
    table = markdown_table(["setting", "teacher {seeds}", *(f"{n} {{seeds}}" for n in names)], rows)
    return f"## {TITLE}\n\n{ABOUT}{temperature:g}.\n\n![{TITLE}]({PICTURE})\n\n{table}"


def _draw(path: Path, known: Sequence[Level], names: Sequence[str]) -> None:
    figure, axes = plots.success_figure("difference (points)")
    for number, name in enumerate(names):
        there = [level for level in known if name in level.differences]
        style = plots.line_style(number)
        x = [100 * np.mean([*level.teacher.values()]) for level in there]
        y = [100 * np.mean([*level.differences[name].values()]) for level in there]
        axes.plot(x, y, color=style.colour, ls=style.dashes, label=name)
        for level in there:
            for seed, value in level.differences[name].items():
                at = 100 * level.teacher.get(seed, np.nan)
                axes.plot(at, 100 * value, "o", color=style.colour, ms=4, alpha=0.6)
    axes.axhline(0.0, color="0.5", lw=0.8)
    axes.autoscale(axis="y")
    axes.set_xlabel("held-out tasks that the teacher solves (%)")
    axes.set_title(TITLE, fontsize=11)
    figure.legend(loc="outside lower left", ncols=3, frameon=False, fontsize=9)
    plots.save(figure, path)
