"""All settings and methods of a study in one table, and what methods differ by over several."""

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence

from atod_jax.results.intervals import EvalResult
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
    rows = []
    for name, found in begun.items():
        by_method = {f.cell.method: f.results("final", temperature) for f in found}
        roles = [by_seed(found, role, temperature) for role in ("start", TEACHER)]
        cells = [*roles, *(by_method.get(method, {}) for method in methods)]
        for seeds in _shared_seeds(by_method.values()):
            rows.append([name, len(seeds), *(_mean_of(results, seeds) for results in cells)])
    about = (
        f"Percent solved at temperature {temperature:g}. The numbers of a row are means over the "
        "same seeds; where some methods have fewer seeds, a further row compares all methods."
    )
    table = markdown_table(["setting", "seeds", "before", TEACHER, *methods], rows)
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


def _shared_seeds(each: Iterable[Iterable[int]]) -> list[frozenset[int]]:
    """Sets of seeds that two methods share, the most seeds first; a setting's only method has its
    own. A row of such a set compares like with like."""
    own = [seeds for one in each if (seeds := frozenset(one))]
    shared = {one & other for one, other in itertools.combinations(own, 2)} - {frozenset()}
    return sorted(shared or set(own), key=lambda seeds: (-len(seeds), sorted(seeds)))


def _mean_of(results: Mapping[int, EvalResult], seeds: frozenset[int]) -> str:
    if not seeds <= results.keys():
        return ""
    return f"{statistics.fmean(100 * results[seed].rate().value for seed in seeds):.1f}"
