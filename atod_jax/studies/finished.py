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


class Finished(NamedTuple):
    """What a study reads of a finished run."""

    arguments: list[str]  # of its program, wherever the folder of the study is
    seconds: int  # that it took, or its last part where it was interrupted
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
      ValueError: it is damaged.
    """

    def __init__(self, out: Path, known: Path | None = None):
        self.out = out
        self._known = known
        self._kept = _read(known, out) if known else {}
        self._found: dict[str, Finished] = {}

    def folder(self, name: str) -> Path:
        """Of a run, finished or not."""
        return self.out / "runs" / name

    def is_made(self, name: str) -> bool:
        """Whether the folder of a finished run is there."""
        return (self.folder(name) / MARK).is_file()

    def __contains__(self, name: str) -> bool:
        """Whether a run has come to its end, its export included."""
        return self.is_made(name) or name in self._kept

    def place(self, name: str) -> str:
        """Where a finished run is found, with what to do if that is wrong."""
        if name in self._kept:
            return f"{self._known} (leave out --known)"
        return f"{self.folder(name)} (use another --out, or remove it)"

    def arguments(self, name: str) -> list[str]:
        """Of the program that made a finished run."""
        known = self._kept.get(name)
        return known.arguments if known else _mark(self.folder(name))["arguments"]

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

    def put(self, name: str, arguments: list[str], seconds: int) -> None:
        """Marks a run as finished."""
        mark = {"arguments": arguments, "seconds": seconds}
        write_text(self.folder(name) / MARK, json.dumps(mark, indent=1) + "\n")

    def keep(self, names: Iterable[str]) -> None:
        """Writes what is found of these runs, and what was kept before, to OUT/results.jsonl.xz.

        Raises:
          ValueError: what is kept there is damaged.
        """
        path = self.out / KEPT
        self.out.mkdir(parents=True, exist_ok=True)
        with locked(self.out, wait=True):  # others may share the folder
            before = _read(path, self.out) if path.is_file() else {}
            found = {name: run for name in names if (run := self.get(name))}
            if found or self._kept:
                write_bytes(path, _packed(before | self._kept | found))


def _mark(folder: Path) -> dict[str, Any]:
    mark = read_object(folder / MARK, AGAIN)
    if not _is_mark(mark):
        raise ValueError(f"{folder / MARK} does not say how the run was made; {AGAIN}")
    return mark


def _is_mark(found: Mapping[str, Any]) -> bool:
    words, seconds = found.get("arguments"), found.get("seconds")
    return (
        isinstance(words, list) and all(isinstance(w, str) for w in words) and type(seconds) is int
    )


def _found_in(folder: Path) -> Finished:
    mark, tables = _mark(folder), folder / TABLES
    told = tables.read_text(encoding="utf-8") if tables.is_file() else ""
    return Finished(mark["arguments"], mark["seconds"], read_run(folder, {}), told)


# ------------------------------------------------------------------------------------- what is kept


def _packed(every: Mapping[str, Finished]) -> bytes:
    """A line for each set of tasks, then one for each run by name."""
    tasks: dict[tuple[tuple[str, ...], tuple[str, ...]], int] = {}
    runs = [
        {
            "name": name,
            "arguments": found.arguments,
            "seconds": found.seconds,
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
        key: float(f"{value:.6g}") if isinstance(value, float) else value
        for key in METRICS
        if (value := record.get(key)) is not None
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
    steps = [type(record["step"]) for record in metrics]
    if not _is_mark(line) or not isinstance(tables, str) or {*steps} - {int}:
        raise ValueError(f"the line of {line['name']!r:.80}")
    run = RunRecord(out / "runs" / line["name"], {}, metrics, results)
    return Finished(line["arguments"], line["seconds"], run, tables)
