"""What a study consists of: runs of programs, which of them belong together, what is compared."""

import dataclasses
import fnmatch
import graphlib
import re
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
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
      ValueError: two jobs, settings or methods of one have one name, a name cannot be a folder's,
        or something names a job, method or setting that is not there.
    """

    title: str
    about: str
    settings: tuple[Setting, ...]
    jobs: tuple[Job, ...]
    cells: tuple[Cell, ...]
    axis: tuple[str, ...] = ()  # settings that differ in their teacher only
    pooled: tuple[str, ...] = ()  # settings whose models differ too, which are read together
    spread: float = 5.0  # points between equal runs of two seeds that are planned for, paired

    def __post_init__(self) -> None:
        _require_jobs(self.jobs)
        _require_settings(self)
        _require_contrasts(self)

    @property
    def sizes(self) -> list[int]:
        """How many jobs cells have."""
        return sorted({len(cell.jobs) for cell in self.cells})

    def cells_of(self, setting: str) -> list[Cell]:
        """The methods of a setting."""
        return [cell for cell in self.cells if cell.setting == setting]


FOLDER = re.compile(r"\w[\w., =-]*(/\w[\w., =-]*)*")  # of a job
FILE = re.compile(r"\w[\w., =-]*")  # of a setting's picture


def _require_jobs(jobs: Sequence[Job]) -> None:
    if not isinstance(jobs, Sequence) or not jobs:
        raise ValueError("a study without a job, or not a sequence of them; give at least one")
    for job in jobs:
        if not isinstance(job.name, str) or not FOLDER.fullmatch(job.name):
            raise ValueError(
                f"a study has a job {job.name!r}; let it be a folder such as mid/opd-0"
            )
        if type(job.seed) is not int or not isinstance(job.options, Mapping):
            raise ValueError(f"{job.name}: give a whole number as seed and options by name")
    _require_once("job", [job.name for job in jobs])
    wanted = {name for job in jobs for name in (*job.before, *job.like)}
    _require_there("job", wanted, {job.name for job in jobs})
    named = {job.name: job for job in jobs}
    for job in jobs:
        for option, tried in job.tuned.items():
            if not tried:
                raise ValueError(f"{job.name}: no job tries values of {option}")
            if never := [name for name in tried if option not in named[name].options]:
                raise ValueError(f"{never[0]} is tried for {option}, but does not set it")


def _require_settings(study: Study) -> None:
    names = [setting.name for setting in study.settings]
    if bad := [name for name in names if not FILE.fullmatch(name) or name == "levels"]:
        raise ValueError(f"a study has a setting {bad[0]!r}, which cannot be a picture's name")
    _require_once("setting", names)
    _require_once("method of a setting", [f"{c.setting}, {c.method}" for c in study.cells])
    wanted = {*study.axis, *study.pooled, *(cell.setting for cell in study.cells)}
    _require_there("setting", wanted, names)
    wanted = {name for cell in study.cells for name in cell.jobs.values()}
    wanted |= {name for setting in study.settings for name in setting.signals}
    _require_there("job", wanted, {job.name for job in study.jobs})


def _require_contrasts(study: Study) -> None:
    for setting in study.settings:
        methods = {cell.method for cell in study.cells_of(setting.name)} | {"teacher"}
        for pair in setting.contrasts:
            unknown = sorted(set(pair) - methods)
            if len(pair) != 2 or unknown:
                said = f"no method is called {unknown[0]!r} there" if unknown else "give two"
                raise ValueError(f"contrast {' - '.join(pair)} of {setting.name}: {said}")


def _require_once(what: str, names: Sequence[str]) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"a study needs a name for every {what}; twice there: {twice[0]}")


def _require_there(what: str, wanted: Iterable[str], known: Collection[str]) -> None:
    if unknown := sorted(set(wanted) - set(known)):
        raise ValueError(f"a study names the {what} {unknown[0]!r}, which it does not have")


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


def common_contrasts(settings: Sequence[Setting]) -> list[tuple[str, str]]:
    """Those that all of some settings ask for."""
    first, *others = (setting.contrasts for setting in settings)
    return [pair for pair in first if all(pair in other for other in others)]


def best_of(means: Mapping[Any, float]) -> Any:
    """The value of the highest mean, of equal ones the first."""
    return max(means, key=lambda value: means[value])


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
