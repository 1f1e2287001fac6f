"""One HTML file that shows runs: curves, and episodes token by token.

The file holds everything it shows, compressed, and asks the network for nothing. What comes from
environments and models is data that the page's script sets as text.
"""

import base64
import contextlib
import dataclasses
import gzip
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from atod_jax.results.files import write_text
from atod_jax.results.runs import RunRecord, curve_temperature, labels, short
from atod_jax.results.tables import percent

ASSETS = Path(__file__).resolve().parents[1] / "assets" / "view"
MOST = 1000  # episodes on a page
POINTS = 400  # of a line
METRICS = (
    "rollout/success", "rollout/valid_actions", "rollout/action_tokens", "rollout/turns",
    "mix/kappa", "mix/rho", "opd/abs_mean", "rl/abs_mean", "kl/token", "kl/verb",
    "student/entropy", "loss/entropy",
)  # fmt: skip


class Batch(NamedTuple):
    """Episodes that were played together, as `transcripts.records` tells them."""

    name: str  # in links to its episodes
    played_for: str  # train, eval, or a reference with its temperature
    step: int | None  # None: a reference, which has no tokens of the teacher
    episodes: Sequence[Mapping[str, Any]]
    run: int = 0  # number of the run


@dataclasses.dataclass(frozen=True)
class Page:
    """What was written."""

    path: Path
    shown: int
    left_out: int


def write_page(
    path: Path,
    runs: Sequence[RunRecord],
    *,
    batches: Sequence[Batch] | None = None,
    most: int = MOST,
) -> Page:
    """Writes the page of some runs, which may still be going on.

    Args:
      path: of the file.
      runs: one after another, as `read_run` finds them.
      batches: the episodes; None: those that the runs have kept in their folders.
      most: episodes on the page. Where there are more, steps are left out evenly, then tasks of the
        evaluations before and after training; the page says how many.

    Raises:
      ValueError: a file of episodes is damaged.
    """
    how = ""
    if batches is None:
        batches = [batch for number, run in enumerate(runs) for batch in _kept(number, run)]
        how = " (python -m atod_jax.view --most=N)"
    found = episodes(batches, most)
    left_out = sum(len(batch.episodes) for batch in batches) - len(found)
    data = {
        "title": _title(runs),
        "note": f"{len(found)} episodes"
        + (f"; {left_out} more are left out{how}" if left_out else ""),
        "runs": [_run(run, name) for run, name in zip(runs, _names(runs), strict=True)],
        "episodes": found,
    }
    text = json.dumps(data, ensure_ascii=False, allow_nan=False)
    # half a surrogate pair becomes its escape sequence, which is also its form in JSON
    packed = gzip.compress(text.encode("utf-8", "backslashreplace"), mtime=0)
    page = (ASSETS / "page.html").read_text(encoding="utf-8")
    for place, content in (
        ("/*STYLE*/", (ASSETS / "page.css").read_text(encoding="utf-8")),
        ("/*SCRIPT*/", (ASSETS / "page.js").read_text(encoding="utf-8")),
        ("<!--DATA-->", base64.b64encode(packed).decode()),
    ):
        page = page.replace(place, content)
    write_text(path, page)
    return Page(path, len(found), left_out)


def _title(runs: Sequence[RunRecord]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} runs of atod_jax"
    return f"{runs[0].algorithm} on {runs[0].definition.get('env.name', '?')}: {runs[0].workdir}"


def _names(runs: Sequence[RunRecord]) -> list[str]:
    found = labels([run.definition for run in runs])
    names = [run.name or label for run, label in zip(runs, found, strict=True)]
    folders = short([str(run.workdir) for run in runs], "/")
    return [
        f"{name}, {folder}" if names.count(name) > 1 else name
        for name, folder in zip(names, folders, strict=True)
    ]


# ------------------------------------------------------------------------------------------- curves


def _run(run: RunRecord, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "folder": str(run.workdir),
        "curve": _thinned([[s, i.value, i.low, i.high] for s, i in run.curve]),
        "teacher": _teacher(run),
        "metrics": _metrics(run),
        "gaps": list(_gaps(run.workdir)),
        "results": _results(run),
    }


def _thinned(points: list[Any]) -> list[Any]:
    return points[:: max(1, -(-len(points) // POINTS))]


def _metrics(run: RunRecord) -> dict[str, list[list[float]]]:
    names = {name for record in run.training for name in record if name.startswith("seconds/")}
    lines = {
        name: [[r["step"], r[name]] for r in run.training if _is_finite(r.get(name))]
        for name in (*METRICS, *sorted(names))
    }
    return {name: _thinned(points) for name, points in lines.items() if points}


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _teacher(run: RunRecord) -> float | None:
    """What the teacher solves, at the temperature of the curve or the one next to it."""
    results = run.results.get("teacher")
    if not results:
        return None
    return results[curve_temperature(run, results)[1]].rate().value


def _results(run: RunRecord) -> list[dict[str, str]]:
    def of(role: str, temperature: float) -> str | None:
        result = run.results.get(role, {}).get(temperature)
        return result and percent(result.rate())

    temperatures = sorted({t for by in run.results.values() for t in by})[::-1]
    roles = {"before": "start", "after": "final", "teacher": "teacher"}
    return [
        {"temperature": f"{t:g}"} | {n: x for n, role in roles.items() if (x := of(role, t))}
        for t in temperatures
    ]


def _gaps(workdir: Path) -> Iterator[tuple[int, list[float | None]]]:
    """Per step that was shown, the mean disagreement of the turns of each number."""
    for path in sorted((workdir / "transcripts").glob("*-turns.json")):
        step, first = path.stem.partition("-")[0], Lines(path, "gap")[:1]
        if step.isdecimal() and first and first[0]["gap"]:
            yield int(step), first[0]["gap"]


# ----------------------------------------------------------------------------------------- episodes


def episodes(batches: Sequence[Batch], most: int) -> list[dict[str, Any]]:
    """At most so many of the episodes, for the page."""
    steps = [batch for batch in batches if batch.step is not None]
    while len(steps) > 1 and sum(len(batch.episodes) for batch in steps) > most:
        steps = steps[::2]
    references = [batch for batch in batches if batch.step is None]
    room = most - sum(len(batch.episodes) for batch in steps)
    each = max(0, room // max(1, len(references)))  # the first tasks, the same of each
    chosen = {id(batch): most for batch in steps} | {id(batch): each for batch in references}
    return [
        {"id": f"{batch.run}.{batch.name}.{n}", "run": batch.run, **told, **record}
        for batch in batches
        for told in [{"set": batch.played_for, "step": batch.step}]
        for n, record in enumerate(batch.episodes[: chosen.get(id(batch), 0)])
    ][:most]


def _kept(number: int, run: RunRecord) -> Iterator[Batch]:
    """What a run has kept in its folder."""
    for path in sorted((run.workdir / "transcripts").glob("[0-9]*-*.jsonl")):
        step, _, name = path.stem.partition("-")
        if step.isdecimal():
            yield Batch(path.name, name, int(step), Lines(path, "turns"), number)
    for path in sorted((run.workdir / "evaluations").glob("*-T*.jsonl.gz")):
        name, _, temperature = path.name.removesuffix(".jsonl.gz").rpartition("-T")
        played_for = f"{name} at T={temperature}"
        yield Batch(path.name, played_for, None, Lines(path, "turns"), number)


class Lines(Sequence[Mapping[str, Any]]):
    """The JSON lines of a file, objects that have a list of some name. Read when they are asked
    for: a study has gigabytes of them and shows a thousand.

    Raises:
      ValueError: the file, or a line that is asked for, is damaged.
    """

    def __init__(self, path: Path, holds: str):
        self._path, self._holds = path, holds
        self._count = len(self._lines())

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, at: Any) -> Any:
        lines = self._lines()[at]
        with _damage(self._path):
            found = [self._read(line) for line in (lines if isinstance(at, slice) else [lines])]
        return found if isinstance(at, slice) else found[0]

    def _lines(self) -> list[bytes]:
        with _damage(self._path):
            content = self._path.read_bytes()
            content = gzip.decompress(content) if self._path.suffix == ".gz" else content
            return [line for line in content.split(b"\n") if line.strip()]

    def _read(self, line: bytes) -> Mapping[str, Any]:
        record = json.loads(line, parse_constant=_refuse)
        if not isinstance(record, dict) or not isinstance(record.get(self._holds), list):
            raise ValueError(f"a line has no list of {self._holds}")
        return record


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError, EOFError, RecursionError, zlib.error) as error:
        raise ValueError(
            f"{path} is damaged ({str(error)[:100]}); delete it to see the others"
        ) from error


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number of JSON")
