"""Runs read back from their folders, brought into sections and groups that may be compared.

A section is one environment, one split and one set of tasks: numbers of different sections are
never put side by side. A group holds the runs of a section that differ in their seed only; what it
is called says in what it differs from the other groups.
"""

import dataclasses
import json
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from atod_jax.options.tree import show
from atod_jax.results.intervals import EvalResult, Interval
from atod_jax.results.metrics import read_records
from atod_jax.results.report import curve_of
from atod_jax.texts import read_object

Definition = Mapping[str, Any]  # path of an option -> value: all that defines a run
T = TypeVar("T")

AGAIN = "delete it, and the run plays it again"
EVALUATED_ON = ("eval.split", "eval.tasks", "eval.final_tasks")
IN_HEADS = ("algorithm.name", "env.name", "eval.split")  # what names begin with


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What a run has left in its folder so far."""

    workdir: Path
    definition: Definition
    records: Sequence[Mapping[str, Any]]  # of metrics.jsonl
    results: Mapping[str, Mapping[float, EvalResult]]  # role -> temperature -> result
    name: str = ""  # chosen by the user; "": named by what differs

    @property
    def algorithm(self) -> str:
        """The algorithm's name."""
        return str(self.definition.get("algorithm.name", "?"))

    @property
    def teacher(self) -> str:
        """Path of the teacher; "" where there is none."""
        return str(self.definition.get("teacher.path") or "")

    @property
    def seed(self) -> int:
        """The training seed."""
        return self.definition.get("seed", 0)

    @property
    def training(self) -> list[Mapping[str, Any]]:
        """One record per training step, in order."""
        return [record for record in self.records if "loss/total" in record]

    @property
    def steps(self) -> int:
        """Training steps done."""
        return max((record["step"] + 1 for record in self.training), default=0)

    @property
    def finished(self) -> bool:
        """Whether the last evaluations are there, as many as were made before training."""
        final, start = (self.results.get(role, {}).keys() for role in ("final", "start"))
        return bool(final) and final >= start

    @property
    def curve(self) -> list[tuple[int, Interval]]:
        """Success during training, in order of steps."""
        return curve_of(self.records)

    @property
    def task_ids(self) -> tuple[str, ...]:
        """The tasks of the evaluations; none where there is no evaluation yet."""
        found = [r.task_ids for results in self.results.values() for r in results.values()]
        return found[0] if found else ()


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only, by rising seed."""

    label: str
    runs: Sequence[RunRecord]

    def results(self, role: str, temperature: float) -> list[EvalResult]:
        """Of the runs that have one."""
        every = [run.results.get(role, {}).get(temperature) for run in self.runs]
        return [result for result in every if result is not None]


@dataclasses.dataclass(frozen=True)
class Section:
    """Groups evaluated on the same tasks."""

    heading: str
    groups: Sequence[Group]

    @property
    def runs(self) -> list[RunRecord]:
        """Those of all groups."""
        return [run for group in self.groups for run in group.runs]

    @property
    def temperatures(self) -> list[float]:
        """All at which there is an evaluation, from the highest."""
        return sorted({t for run in self.runs for r in run.results.values() for t in r})[::-1]


def read_run(workdir: Path, definition: Definition, name: str = "") -> RunRecord:
    """Reads the folder of a run, which may still be going on.

    Raises:
      ValueError: a file in it is damaged, or its evaluations are on different tasks.
    """
    results: dict[str, dict[float, EvalResult]] = {}
    for path in sorted((workdir / "evaluations").glob("*-T*.json")):
        found = read_evaluation(path)
        results.setdefault(path.stem.rpartition("-T")[0], {})[found.temperature] = found
    if len({r.task_ids for by_role in results.values() for r in by_role.values()}) > 1:
        raise ValueError(f"{workdir / 'evaluations'} holds evaluations on different tasks")
    return RunRecord(workdir, definition, read_records(workdir), results, name)


def read_evaluation(path: Path) -> EvalResult:
    """An evaluation as it was written.

    Raises:
      ValueError: the file is damaged.
    """
    found = read_object(path, AGAIN)
    try:
        return EvalResult.from_json(found)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise ValueError(f"{path} is damaged ({str(error)[:120]}); {AGAIN}") from error


# ------------------------------------------------------------------------------ sections and groups


def sections(runs: Sequence[RunRecord]) -> list[Section]:
    """Brings runs into sections and groups, both in the order in which they first occur.

    Raises:
      ValueError: one name was given to runs with different settings.
    """
    parts: list[tuple[Definition, list[RunRecord]]] = []
    for members in _by(runs, lambda run: _frozen(_place(run.definition))):
        task_sets = list(dict.fromkeys(run.task_ids for run in members if run.task_ids)) or [()]
        for number, ids in enumerate(task_sets, 1):
            # a run that has no evaluation yet goes with the first
            chosen = [r for r in members if (r.task_ids or task_sets[0]) == ids]
            parts.append((_place(chosen[0].definition) | {"task set": number}, chosen))
    headings = [_heading(members) for _, members in parts]
    if len(set(headings)) < len(headings):
        headings = _distinct(headings, [place for place, _ in parts])
    return [Section(h, _groups(members)) for h, (_, members) in zip(headings, parts, strict=True)]


def _place(definition: Definition) -> dict[str, Any]:
    """What says which tasks are played: the environment with its own options, and the split."""
    own = f"env.{str(definition.get('env.name', '')).rpartition('.')[2]}."
    return {
        path: value
        for path, value in definition.items()
        if path == "env.name" or path.startswith(own) or path in EVALUATED_ON
    }


def _heading(runs: Sequence[RunRecord]) -> str:
    definition = runs[0].definition
    words = [str(definition.get(path, "")) for path in ("env.name", "eval.split")]
    count = max(len(run.task_ids) for run in runs)
    return ", ".join([word for word in words if word] + [f"{count} tasks"] * bool(count))


def _groups(runs: Sequence[RunRecord]) -> list[Group]:
    members = _by(runs, lambda run: (run.name, _frozen(_without_seed(run))))
    definitions = [_without_seed(group[0]) for group in members]
    names = [group[0].name for group in members]
    for name in filter(None, names):
        same = [d for n, d in zip(names, definitions, strict=True) if n == name]
        if len(same) > 1:
            raise ValueError(
                f"the name {name!r} is given to runs with different settings "
                f"({', '.join(_varying(same))}); give each of them its own"
            )
    found = labels(definitions)
    return [
        Group(name or label, sorted(group, key=lambda run: run.seed))
        for name, label, group in zip(names, found, members, strict=True)
    ]


def _without_seed(run: RunRecord) -> Definition:
    return {path: value for path, value in run.definition.items() if path != "seed"}


def curve_temperature(run: RunRecord, there: Collection[float]) -> tuple[float, float]:
    """(that of the run's curve, the one next to it of those that are there)."""
    wanted = run.definition.get("eval.curve_temperature", max(there))
    return wanted, min(there, key=lambda t: abs(t - wanted))


def curve_points(runs: Iterable[RunRecord]) -> dict[int, list[float]]:
    """Step -> percent solved, of the runs that have the step; in order of steps."""
    by_step: dict[int, list[float]] = {}
    for run in runs:
        for step, rate in run.curve:
            by_step.setdefault(step, []).append(100 * rate.value)
    return dict(sorted(by_step.items()))


def mean_of(
    runs: Iterable[RunRecord], name: str, *, first: int, end: int | None = None
) -> float | None:
    """A metric over the steps of a span and all runs; a first step below 0 counts from a run's
    end. None where no run has it."""
    values = [
        record[name]
        for run in runs
        for record in run.training
        if record["step"] >= (first if first >= 0 else run.steps + first)
        and (end is None or record["step"] < end)
        and record.get(name) is not None
    ]
    return statistics.fmean(values) if values else None


def repeated_seeds(group: Group) -> dict[int, list[RunRecord]]:
    """The runs of a group that are the same run twice, by seed."""
    same = _by(group.runs, lambda run: run.seed)
    return {runs[0].seed: runs for runs in same if len(runs) > 1}


def _by(items: Iterable[T], key: Callable[[T], Any]) -> list[list[T]]:
    """Items with the same key together, in the order of the first of each."""
    found: dict[Any, list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return list(found.values())


# ------------------------------------------------------------------------------------------- labels


def labels(definitions: Sequence[Definition]) -> list[str]:
    """A name for each definition: the algorithm, and every option in which it differs from others.

    >>> labels([{"algorithm.name": "atod", "optim.lr": x} for x in (1e-3, 1e-4)])
    ['atod, lr=0.001', 'atod, lr=0.0001']
    """
    return _distinct([str(d.get("algorithm.name", "run")) for d in definitions], definitions)


def _distinct(heads: Sequence[str], definitions: Sequence[Definition]) -> list[str]:
    """Each head with the options that differ and are there; an absent one where it must be said."""
    paths = [p for p in _varying(definitions) if p not in IN_HEADS]
    found = [_label(h, d, paths, definitions) for h, d in zip(heads, definitions, strict=True)]
    for label in [x for x in dict.fromkeys(found) if found.count(x) > 1]:
        alike = [i for i, other in enumerate(found) if other == label]
        absent = _absent([definitions[i] for i in alike])
        for i in alike:
            found[i] = _label(label, definitions[i], absent, definitions)
    return found


def _varying(definitions: Sequence[Definition]) -> list[str]:
    """The options that have several values among those that have them."""
    paths = dict.fromkeys(path for definition in definitions for path in definition)
    return [p for p in paths if len({_frozen(d[p]) for d in definitions if p in d}) > 1]


def _absent(definitions: Sequence[Definition]) -> list[str]:
    """The options that some have and others have not."""
    paths = dict.fromkeys(path for definition in definitions for path in definition)
    return [p for p in paths if not all(p in d for d in definitions)]


def _label(
    head: str, definition: Definition, paths: Sequence[str], definitions: Sequence[Definition]
) -> str:
    names = short(tuple(_bare(path) for path in paths), ".")
    parts = [head]
    for path, name in zip(paths, names, strict=True):
        if path in definition:
            values = [d[path] for d in definitions if path in d]
            parts.append(f"{name}={_value(definition[path], values)}")
    return ", ".join(parts)


def _bare(path: str) -> str:
    """teacher.path -> teacher: the last word says nothing that a reader misses."""
    return path.removesuffix(".path").removesuffix(".name")


def _value(value: Any, values: Sequence[Any]) -> str:
    """A value for a label; of a path, the end that tells it from the other values."""
    if not isinstance(value, str):
        return show(tuple(value) if isinstance(value, list) else value)
    words = list(dict.fromkeys(v for v in values if isinstance(v, str)))
    return short(words, "/")[words.index(value)] or "none"


def short(names: Sequence[str], separator: str) -> list[str]:
    """The fewest last parts of every name that tell different ones apart.

    >>> short(["a/x/teacher", "a/y/teacher"], "/")
    ['x/teacher', 'y/teacher']
    """
    parts = [name.rstrip(separator).split(separator) for name in names]
    different = len(set(map(tuple, parts)))
    for count in range(1, max(map(len, parts), default=1) + 1):
        tails = [separator.join(words[-count:]) for words in parts]
        if len(set(tails)) == different:
            return tails
    return list(names)


def _frozen(value: Any) -> str:
    """Something hashable, equal for equal values whatever the order of keys."""
    return json.dumps(value, sort_keys=True, default=str)
