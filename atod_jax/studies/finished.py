"""The finished runs of a study: their folders, and one small file that outlives these.

A run's folder holds megabytes of checkpoints and episodes, of which a study reads a few kilobytes.
OUT/results.jsonl.xz keeps these of every finished run: with that file alone, named to another study
as `--known`, its page can be written again, and what is missing can be made elsewhere. What else is
needed of a run, the model that others start from, is made again there.
"""

import json
import lzma
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from atod_jax.results.files import write_bytes, write_text
from atod_jax.results.intervals import EvalResult
from atod_jax.results.lock import locked
from atod_jax.results.report import CURVE_KEYS
from atod_jax.results.runs import RunRecord, read_run
from atod_jax.texts import read_object

MARK = "study.json"  # in the folder of a run that has come to its end: how it was made
TABLES = "signals.md"  # there, of the program `signals`
KEPT = "results.jsonl.xz"
SIGNS = {
    "rollout/success": "success in training",
    "kl/verb": "gap on the first token",
    "rollout/mixed_groups": "mixed groups",
    "kl/token": "gap per token",
    "rollout/valid_actions": "valid actions",
}
AGAIN = "remove that folder, and the run is made again"
WRONG = (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError)
METRICS = ("step", "loss/total", *SIGNS, *CURVE_KEYS)  # those that a study reads


class Mark(NamedTuple):
    """How a finished run was made."""

    arguments: list[str]  # of its program, wherever the folder of the study is
    needs: dict[str, list[str]]  # the same of all runs that it came from
    seconds: int  # that it took, or its last part where it was interrupted


class Finished(NamedTuple):
    """What a study reads of a finished run."""

    mark: Mark
    run: RunRecord
    tables: str = ""  # Markdown, of a run of `signals`

    @property
    def rate(self) -> float:
        """Share of the tasks solved at the end, mean over temperatures.

        Raises:
          ValueError: there is no such evaluation.
        """
        ends = self.run.results.get("final", {}).values()
        if not ends:
            raise ValueError(f"{self.run.workdir} has no evaluation at its end; {AGAIN}")
        return sum(result.rate().value for result in ends) / len(ends)


class Shelf:
    """The finished runs in the folder of a study, by name.

    Args:
      out: the folder.
      known: a file in which another one has kept its own.

    Raises:
      OSError: that cannot be read.
      ValueError: it is damaged, or what is kept in the folder.
    """

    def __init__(self, out: Path, known: Path | None = None):
        self.out = out
        self._kept = _read(known, out) if known else {}
        self._found: dict[str, Finished] = {}
        self._kept_before()  # better now than when the first run has ended

    def folder(self, name: str) -> Path:
        """Of a run, finished or not."""
        return self.out / "runs" / name

    def is_made(self, name: str) -> bool:
        """Whether the folder of a finished run is there."""
        return (self.folder(name) / MARK).is_file()

    def __contains__(self, name: str) -> bool:
        """Whether a run has come to its end, its export included."""
        return self.is_made(name) or name in self._kept

    def mark(self, name: str) -> Mark | None:
        """How the run in its folder was made; None where it is not finished.

        Raises:
          ValueError: the mark is damaged.
        """
        return _mark(self.folder(name)) if self.is_made(name) else None

    def known_mark(self, name: str) -> Mark | None:
        """The same of a run that is known from elsewhere."""
        return self._kept[name].mark if name in self._kept else None

    def forget(self, name: str) -> None:
        """Does not take over what is known of a run."""
        del self._kept[name]

    def get(self, name: str) -> Finished | None:
        """What is found of a run; None where it is not finished.

        A known one stays what it is, though its model had to be made again for others.

        Raises:
          ValueError: a file in its folder is damaged.
        """
        if name in self._kept:
            return self._kept[name]
        if name not in self._found and self.is_made(name):
            self._found[name] = _found_in(self.folder(name))
        return self._found.get(name)

    def rates(self, names: Iterable[str]) -> dict[str, float]:
        """`Finished.rate` of those that are finished."""
        return {name: run.rate for name in names if (run := self.get(name))}

    def put(self, name: str, arguments: list[str], *, seconds: int, needs: Iterable[str]) -> None:
        """Marks a run as finished, which started from others in the folder."""
        origins: dict[str, list[str]] = {}
        for need in needs:
            came_from = _mark(self.folder(need))
            origins |= came_from.needs | {need: came_from.arguments}
        mark = Mark(arguments, origins, seconds)
        write_text(self.folder(name) / MARK, json.dumps(mark._asdict(), indent=1) + "\n")

    def keep(self, names: Iterable[str]) -> None:
        """Writes what is found of these runs, and what was kept before, to OUT/results.jsonl.xz.

        Raises:
          ValueError: what is kept there is damaged.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        with locked(self.out, wait=True):  # others may share the folder
            before = self._kept_before()
            found = {name: run for name in names if (run := self.get(name))}
            if found or self._kept:
                write_bytes(self.out / KEPT, _packed(before | self._kept | found))

    def _kept_before(self) -> dict[str, Finished]:
        path = self.out / KEPT
        return _read(path, self.out) if path.is_file() else {}


def _mark(folder: Path) -> Mark:
    mark = _as_mark(read_object(folder / MARK, AGAIN))
    if not mark:
        raise ValueError(f"{folder / MARK} does not say how the run was made; {AGAIN}")
    return mark


def _as_mark(found: Mapping[str, Any]) -> Mark | None:
    values: list[Any] = [found.get(name) for name in Mark._fields]
    arguments, needs, seconds = values
    if type(seconds) is not int or not 0 <= seconds < 1e9 or not isinstance(needs, dict):
        return None
    lists = [arguments, *needs.values()]
    if not all(isinstance(x, list) and all(isinstance(w, str) for w in x) for x in lists):
        return None
    return Mark(arguments, needs, seconds)


def _are_metrics(records: Iterable[Mapping[str, Any]]) -> bool:
    """Whether what a study reads of them is numbers, or null where one is not finite."""
    return all(
        type(record["step"]) is int
        and all(type(record.get(key)) in (int, float, type(None)) for key in METRICS)
        for record in records
    )


def _found_in(folder: Path) -> Finished:
    mark, run, tables = _mark(folder), read_run(folder, {}), folder / TABLES
    if not _are_metrics(run.records):
        raise ValueError(f"{folder} has a record whose values are no numbers; {AGAIN}")
    told = tables.read_text(encoding="utf-8", errors="replace") if tables.is_file() else ""
    return Finished(mark, run, told)


# ------------------------------------------------------------------------------------- what is kept


def _packed(every: Mapping[str, Finished]) -> bytes:
    """A line for each set of tasks, then one for each run by name."""
    tasks: dict[tuple[tuple[str, ...], tuple[str, ...]], int] = {}
    runs = [
        {
            "name": name,
            **found.mark._asdict(),
            "tables": found.tables,
            "metrics": [_short(record) for record in found.run.records],
            "results": [
                _without_tasks(role, result, tasks)
                for role, by_temperature in found.run.results.items()
                for result in by_temperature.values()
            ],
        }
        for name, found in sorted(every.items())
    ]
    sets = [{"task_ids": ids, "kinds": kinds} for ids, kinds in tasks]
    lines = [json.dumps(line, separators=(",", ":")) + "\n" for line in (*sets, *runs)]
    return lzma.compress("".join(lines).encode())


def _short(record: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics that a study reads, to six digits."""
    return {
        key: float(f"{value:.6g}") if isinstance(value := record[key], float) else value
        for key in METRICS
        if key in record
    }


def _without_tasks(role: str, result: EvalResult, tasks: dict[Any, int]) -> dict[str, Any]:
    """An evaluation that names its tasks by their number."""
    number = tasks.setdefault((result.task_ids, result.kinds), len(tasks))
    written = {k: v for k, v in result.to_json().items() if k not in ("task_ids", "kinds")}
    written["success"] = np.asarray(result.success, int).tolist()
    if np.array_equal(result.score, result.success):
        del written["score"]
    return {"role": role, "tasks": number} | written


def _read(path: Path, out: Path) -> dict[str, Finished]:
    try:
        with lzma.open(path, "rt", encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        sets = [line for line in lines if "task_ids" in line]
        runs = [line for line in lines if "task_ids" not in line]
        return {line["name"]: _unpacked(line, sets, out) for line in runs}
    except (lzma.LZMAError, EOFError, *WRONG) as error:
        raise ValueError(
            f"{path} holds no results of a study, or half of them ({str(error)[:120]}); remove it, "
            f"or name a {KEPT} that a study has written"
        ) from error


def _unpacked(line: Mapping[str, Any], sets: list[dict[str, Any]], out: Path) -> Finished:
    results: dict[str, dict[float, EvalResult]] = {}
    for written in line["results"]:
        own = {k: v for k, v in written.items() if k not in ("role", "tasks")}
        result = EvalResult.from_json({"score": own["success"], **own, **sets[written["tasks"]]})
        results.setdefault(written["role"], {})[result.temperature] = result
    tables, metrics = line["tables"], line["metrics"]
    mark = _as_mark(line)
    if not mark or not isinstance(tables, str) or not _are_metrics(metrics):
        raise ValueError(f"the line of {line['name']!r:.80}")
    run = RunRecord(out / "runs" / line["name"], {}, metrics, results)
    return Finished(mark, run, tables)
