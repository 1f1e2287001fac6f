"""All settings and methods of a study in one table."""

import statistics
from collections.abc import Mapping, Sequence

from atod_jax.results.tables import markdown_table
from atod_jax.studies.found import TEACHER, Found, by_seed, temperatures
from atod_jax.studies.plan import Study


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


def _of_all(found: Sequence[Found], role: str, temperature: float) -> str:
    results = by_seed(found, role, temperature)
    if not results:
        return ""
    solved = statistics.fmean(100 * result.rate().value for result in results.values())
    return f"{solved:.1f} ({len(results)})"
