"""All settings and methods of a study in one table, and what methods differ by over several."""

import statistics
from collections.abc import Mapping, Sequence

from atod_jax.results.tables import markdown_table
from atod_jax.studies.evidence import over_seeds_text
from atod_jax.studies.found import TEACHER, Found, by_seed, contrast, temperatures
from atod_jax.studies.plan import Study, common_contrasts


def overview(study: Study, every: Mapping[str, Sequence[Found]]) -> str:
    """What every method solves in every setting, "" where fewer than two settings have runs."""
    begun = {setting: found for setting, found in every.items() if found}
    if len(begun) < 2:
        return ""
    temperature = max((t for found in begun.values() for t in temperatures(found)), default=1.0)
    there = {f.cell.method for found in begun.values() for f in found}
    methods = [m for m in dict.fromkeys(cell.method for cell in study.cells) if m in there]
    rows = [
        [name, _of_all(found, "start", temperature), _of_all(found, TEACHER, temperature)]
        + [_of_all([f for f in found if f.cell.method == m], "final", temperature) for m in methods]
        for name, found in begun.items()
    ]
    about = (
        f"Percent solved at temperature {temperature:g}, mean over the seeds that are finished, in "
        "parentheses how many these are. Methods with other seeds began with other models: their "
        "differences stand below, seed by seed."
    )
    table = markdown_table(["setting", "before", TEACHER, *methods], rows)
    return f"## At a glance\n\n{about}\n\n{table}"


POOLED = (
    "The mean over all pairs of runs in {settings}, one a setting and a seed: each has a student "
    "and a teacher of its own. In braces the 95 % interval over **pairs** (Student's t), how many "
    "in parentheses. It speaks of other models and seeds of these very settings."
)


def pooled(study: Study, every: Mapping[str, Sequence[Found]]) -> str:
    """What methods differ by over several settings, "" where fewer than two of them have runs."""
    begun = [s for s in study.settings if s.name in study.pooled and every[s.name]]
    if len(begun) < 2:
        return ""
    degrees = sorted({t for s in begun for t in temperatures(every[s.name])})[::-1]
    rows = []
    for one, other in common_contrasts(begun):
        cells = [f"{one} - {other}"]
        for t in degrees:
            found = [contrast(every[s.name], one, other, temperature=t) for s in begun]
            each = [x for estimate in found if estimate for x in estimate.per_seed]
            cells.append(f"{over_seeds_text(each, '+')} ({len(each)})" if each else "")
        rows.append(cells)
    table = markdown_table(["difference, points", *(f"T = {t:g}" for t in degrees)], rows)
    about = POOLED.format(settings=", ".join(s.name for s in begun))
    return f"## Over settings\n\n{about}\n\n{table}"


def _of_all(found: Sequence[Found], role: str, temperature: float) -> str:
    results = by_seed(found, role, temperature)
    if not results:
        return ""
    solved = statistics.fmean(100 * result.rate().value for result in results.values())
    return f"{solved:.1f} ({len(results)})"
