"""What a study consists of: runs of programs, which of them belong together, what is compared."""

import dataclasses
import fnmatch
import graphlib
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from atod_jax.options.tree import show

OUT = "{out}"  # stands for the folder of the study


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of `train`, or of another program.

    In its config, options and checkpoint `{out}` stands for the folder of the study.
    """

    name: str  # its folder below OUT/runs
    config: str  # FILE:variant, as for train; "" where the checkpoint says it
    seed: int  # everything that depends on one seed can be made apart from the others
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    needs: tuple[str, ...] = ()  # jobs whose results it starts from
    # option -> jobs that tried values of it; the one with the best evaluations in the mean is taken
    tuned: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    # jobs from the same models: what the first finished one found before training is taken over
    like: tuple[str, ...] = ()
    program: str = "train"
    checkpoint: str = ""  # that the program begins with

    @property
    def tried(self) -> tuple[str, ...]:
        """The jobs whose evaluations say which values it takes."""
        return tuple(name for tried in self.tuned.values() for name in tried)

    @property
    def before(self) -> tuple[str, ...]:
        """All jobs that have to be finished first."""
        return self.needs + self.tried

    def command(self, out: str, chosen: Mapping[str, Any]) -> list[str]:
        """The arguments of the program; `chosen` are more options."""
        words = [*self.arguments(chosen), f"--workdir={OUT}/runs/{self.name}"]
        return [word.replace(OUT, out) for word in words]

    def arguments(self, chosen: Mapping[str, Any]) -> list[str]:
        """Those that define it, wherever the folder of the study is."""
        options = {**self.options, **chosen}
        begin = {"config": self.config, "checkpoint": self.checkpoint}
        return [
            *(f"--{flag}={x}" for flag, x in begin.items() if x),
            *(f"--config.{k}={show(v)}" for k, v in options.items()),
        ]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One method in one setting: a job per seed."""

    setting: str
    method: str
    jobs: Mapping[int, str]  # seed -> name


@dataclasses.dataclass(frozen=True)
class Setting:
    """Runs from the same student and teacher, which may be compared."""

    name: str
    about: str  # a sentence
    # pairs of methods whose difference is asked for
    contrasts: tuple[tuple[str, str], ...] = ()
    signals: tuple[str, ...] = ()  # jobs of `signals` whose tables are shown


@dataclasses.dataclass(frozen=True)
class Study:
    """What `get_study` of a file such as configs/study.py returns.

    Raises:
      ValueError: two jobs have one name, or something names a job, method or setting that is not
        there.
    """

    title: str
    about: str
    settings: tuple[Setting, ...]
    jobs: tuple[Job, ...]
    cells: tuple[Cell, ...]
    axis: tuple[str, ...] = ()  # settings that differ in their teacher only
    spread: float = 5.0  # points between equal runs of two seeds that are planned for, paired

    def __post_init__(self) -> None:
        if not self.jobs:
            raise ValueError("a study without a job; give at least one")
        names = [job.name for job in self.jobs]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"a study needs a name for every job; twice there: {twice[0]}")
        wanted = {name for job in self.jobs for name in (*job.before, *job.like)}
        wanted |= {name for cell in self.cells for name in cell.jobs.values()}
        wanted |= {name for setting in self.settings for name in setting.signals}
        if unknown := sorted(wanted - set(names)):
            raise ValueError(f"a study names the job {unknown[0]!r}, which it does not have")
        known = {setting.name for setting in self.settings}
        if unknown := sorted({*self.axis, *(cell.setting for cell in self.cells)} - known):
            raise ValueError(f"a study names the setting {unknown[0]!r}, which it does not have")
        for setting in self.settings:
            methods = {cell.method for cell in self.cells_of(setting.name)} | {"teacher"}
            for pair in setting.contrasts:
                if unknown := sorted(set(pair) - methods):
                    raise ValueError(f"contrast {' - '.join(pair)} of {setting.name}: no method is "
                                     f"called {unknown[0]!r} there")  # fmt: skip
        tried = {(name, option) for j in self.jobs for option, x in j.tuned.items() for name in x}
        for job in self.jobs:
            for option in {option for name, option in tried if name == job.name}:
                if option not in job.options:
                    raise ValueError(f"{job.name} is tried for {option}, but does not set it")

    @property
    def sizes(self) -> list[int]:
        """How many jobs cells have."""
        return sorted({len(cell.jobs) for cell in self.cells})

    def cells_of(self, setting: str) -> list[Cell]:
        """The methods of a setting."""
        return [cell for cell in self.cells if cell.setting == setting]


def by_value(tried: Iterable[str], option: str, named: Mapping[str, Job]) -> dict[Any, list[str]]:
    """The jobs that tried a value of an option, such as those of several seeds."""
    found: dict[Any, list[str]] = {}
    for name in tried:
        found.setdefault(named[name].options[option], []).append(name)
    return found


def mean_by_value(
    rates: Mapping[str, float], option: str, named: Mapping[str, Job]
) -> dict[Any, float]:
    """The mean rate of the jobs that tried a value of an option."""
    values = by_value(rates, option, named)
    return {value: statistics.fmean(rates[n] for n in names) for value, names in values.items()}


def to_make(
    jobs: Sequence[Job],
    only: Iterable[str] = ("*",),
    *,
    is_found: Callable[[str], bool] = lambda name: False,
    is_made: Callable[[str], bool] = lambda name: False,
) -> list[Job]:
    """The jobs whose names match a pattern and all that is still needed for them, each after what
    it needs.

    Args:
      jobs: all of a study.
      only: patterns of names.
      is_found: whether the results of a run are there.
      is_made: whether its folder is there too, from which others may start.

    Raises:
      ValueError: a pattern that no name matches, or jobs that wait for each other.
    """
    named = {job.name: job for job in jobs}
    missing: set[str] = set()
    for pattern in only:
        matching = fnmatch.filter(named, pattern)
        if not matching:
            raise ValueError(
                f"--only: {pattern!r} is the name of no run of the study, such as {jobs[0].name}"
            )
        missing.update(name for name in matching if not is_found(name))
    waiting = list(missing)
    while waiting:
        job = named[waiting.pop()]
        more = {name for name in job.needs if not is_made(name)}
        more |= {name for name in job.tried if not is_found(name)}
        waiting += more - missing
        missing |= more
    try:
        order = list(graphlib.TopologicalSorter({j.name: j.before for j in jobs}).static_order())
    except graphlib.CycleError as error:
        raise ValueError(f"jobs of a study wait for each other: {error.args[1]}") from error
    depth, seed = _depths(named, order), {job.name: job.seed for job in jobs}
    for name in reversed(order):
        for other in named[name].before:  # what is needed belongs to the first seed that needs it
            seed[other] = min(seed[other], seed[name])
    # seed by seed, so that an interrupted study has whole seeds
    kept = [job for job in jobs if job.name in missing]
    return sorted(kept, key=lambda job: (seed[job.name], depth[job.name]))


def _depths(named: Mapping[str, Job], order: Sequence[str]) -> dict[str, int]:
    depth: dict[str, int] = {}
    for name in order:
        depth[name] = 1 + max((depth[other] for other in named[name].before), default=-1)
    return depth
