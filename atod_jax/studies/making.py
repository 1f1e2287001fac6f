"""Makes the runs of a study that are missing, several side by side, each a process of its own."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from atod_jax.results.lock import is_locked, locked
from atod_jax.studies.finished import Mark, Shelf
from atod_jax.studies.plan import Job, best_of, by_value, mean_by_value

# One thread per run: tiny matrices gain nothing from two, two runs do, and the order of sums does
# not depend on how many cores a machine has; on its kind of processor it still does. NPROC is how
# XLA is told the size of its pool.
ALONE = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "NPROC": "1"}
POLL = 0.5  # seconds


def program(name: str) -> tuple[str, ...]:
    """How a program of the package is started."""
    return sys.executable, "-m", f"atod_jax.{name}"


def require_own(shelf: Shelf, jobs: Sequence[Job]) -> list[str]:
    """Checks that what is finished was made as this study makes it, from models made so too.

    Returns:
      A line for each known run that was not, which is forgotten.

    Raises:
      ValueError: a run in the folder was not.
    """
    ways, said = _Ways(shelf, jobs), []
    for job in sorted(jobs, key=lambda job: bool(job.tuned)):  # those that are tuned by come first
        made, known = shelf.mark(job.name), shelf.known_mark(job.name)
        if known and (wrong := ways.other(job, known)):
            shelf.forget(job.name)
            said.append(wrong)
        if made and (wrong := ways.other(job, made)):
            raise ValueError(f"{wrong}: {shelf.folder(job.name)} (use another --out, or remove it)")
    return said


class _Ways:
    """The arguments that the runs of a study may have."""

    def __init__(self, shelf: Shelf, jobs: Sequence[Job]):
        self._shelf, self._named = shelf, {job.name: job for job in jobs}
        # what runs were made with where those that tried the values are gone
        self._settled: dict[tuple[str, tuple[str, ...]], Any] = {}

    def other(self, job: Job, mark: Mark) -> str:
        """How its run was made otherwise, "" where it was not."""
        for name, arguments in mark.needs.items():
            if name in self._named and (wrong := self._differs(self._named[name], arguments)):
                return f"{job.name} began from {name}, which was {wrong}"
        wrong = self._differs(job, mark.arguments)
        return wrong and f"{job.name} was {wrong}"

    def _differs(self, job: Job, old: list[str]) -> str:
        possible = {tuple(job.arguments(values)): values for values in self._values(job)}
        if tuple(old) in possible:
            for option, value in possible[tuple(old)].items():
                self._settled[option, job.tuned[option]] = value
            return ""
        new = list(possible)[-1]
        other = {*old, *new} - ({*old} & {*new})
        return f"made with {_differing(old, other)}, the study now has {_differing(new, other)}"

    def _values(self, job: Job) -> list[dict[str, Any]]:
        """Of the options that are tuned: the best, or where it is not known yet which these are,
        all that are tried, until one is found."""
        try:
            return [chosen(self._shelf, job, self._named)]
        except FileNotFoundError:
            every = [
                [self._settled[key]]
                if (key := (option, tried)) in self._settled
                else by_value(tried, option, self._named)
                for option, tried in job.tuned.items()
            ]
            return [dict(zip(job.tuned, v, strict=True)) for v in itertools.product(*every)]


def _differing(arguments: Sequence[str], other: Collection[str]) -> str:
    return next((word for word in arguments if word in other), "nothing in its place")


def chosen(shelf: Shelf, job: Job, named: Mapping[str, Job]) -> dict[str, Any]:
    """The values of the options that are tuned: those that the jobs that tried them solved most
    with, in the mean over these.

    Raises:
      FileNotFoundError: one of those is not finished.
    """
    values = {}
    for option, tried in job.tuned.items():
        rates = shelf.rates(tried)
        if missing := [name for name in tried if name not in rates]:
            raise FileNotFoundError(f"{shelf.folder(missing[0])} is not finished")
        values[option] = best_of(mean_by_value(rates, option, named))
    return values


def known(shelf: Shelf, job: Job) -> dict[str, Any]:
    """Where evaluations of the same models are that need not be made again."""
    done = [name for name in job.like if shelf.is_made(name)]
    return {"eval.known": str(shelf.folder(done[0]))} if done else {}


def make(
    shelf: Shelf,
    jobs: Sequence[Job],
    *,
    every: Sequence[Job],
    side_by_side: int,
    tell: Callable[[str], None],
) -> list[str]:
    """Makes runs; returns the names of those that failed or could not begin.

    Where it is interrupted the runs save and end; the same command goes on with them.

    Args:
      shelf: what is finished.
      jobs: what is to be made, in an order in which each comes after what it needs.
      every: all of the study, of which `jobs` may be a part.
      side_by_side: how many run at a time.
      tell: told a line at the start and whenever a run ends.

    Raises:
      KeyboardInterrupt: after the runs have ended.
    """
    work = _Work(shelf, jobs, {job.name: job for job in every}, side_by_side, tell)
    said = f"; what they say is in {shelf.out / 'logs'}" if jobs else ""
    tell(f"{len(jobs)} runs to be made, {side_by_side} at a time{said}")
    try:
        while work.waiting or work.running:
            work.leave_out()
            work.notice()
            work.begin()
            time.sleep(POLL)
            work.end()
    finally:
        _stop([run.process for run in work.running.values()])
    return work.failed


class _Running(NamedTuple):
    process: subprocess.Popen[bytes]
    began: float
    arguments: list[str]
    taken: contextlib.ExitStack  # what keeps others from making it too


class _Work:
    """What is done, under way and left; several may share the work in one folder."""

    def __init__(
        self,
        shelf: Shelf,
        jobs: Sequence[Job],
        named: Mapping[str, Job],
        side_by_side: int,
        tell: Callable[[str], None],
    ):
        self._shelf, self._named, self._side_by_side, self._tell = shelf, named, side_by_side, tell
        self._count, self._told = len(jobs), False
        self.waiting = list(jobs)
        self.running: dict[str, _Running] = {}
        self.failed: list[str] = []
        self._took: list[float] = []

    def leave_out(self) -> None:
        """What needs a run that failed cannot begin."""
        for job in [job for job in self.waiting if set(job.before) & set(self.failed)]:
            self.waiting.remove(job)
            self.failed.append(job.name)
            self._tell(f"left out: {job.name}, which needs a run that failed")

    def notice(self) -> None:
        """Books what others have made."""
        for job in [job for job in self.waiting if self._shelf.is_made(job.name)]:
            self.waiting.remove(job)

    def begin(self) -> None:
        """Starts what is ready and nobody else makes, as far as there is room."""
        unmade = {job.name for job in self.waiting} | self.running.keys() | set(self.failed)
        for job in [job for job in self.waiting if not unmade & set(job.before)]:
            if len(self.running) == self._side_by_side:
                return
            taken = self._take(job)
            if taken is None:
                continue
            self.waiting.remove(job)
            values = chosen(self._shelf, job, self._named)
            process = _start(self._shelf.out, job, values | known(self._shelf, job))
            began, arguments = time.monotonic(), job.arguments(values)
            self.running[job.name] = _Running(process, began, arguments, taken)
        if self.waiting and not self.running and not self._told:
            self._told = True
            self._tell(f"waiting for {self.waiting[0].name}, which another process makes")

    def _take(self, job: Job) -> contextlib.ExitStack | None:
        """Keeps a run for this process; None where another one makes it or has just made it, or
        where one goes on whose study was killed."""
        claim = self._shelf.out / "taken" / job.name
        claim.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(claim))
            except ValueError:
                return None
            if is_locked(self._shelf.folder(job.name)) or self._shelf.is_made(job.name):
                return None
            return stack.pop_all()

    def end(self) -> None:
        """Books what has ended."""
        ended = [name for name, run in self.running.items() if run.process.poll() is not None]
        for name in ended:
            run = self.running.pop(name)
            with run.taken:
                self._book(name, run)

    def _book(self, name: str, run: _Running) -> None:
        if run.process.returncode:
            self.failed.append(name)
            self._tell(f"failed: {name}: {_last_line(_log(self._shelf.out, name))}")
            return
        self._took.append(time.monotonic() - run.began)
        seconds, needs = round(self._took[-1]), self._named[name].needs
        self._shelf.put(name, run.arguments, seconds=seconds, needs=needs)
        self._shelf.keep(self._named)
        done = self._count - len(self.waiting) - len(self.running) - len(self.failed)
        self._tell(f"{name} done, {done} of {self._count}{self._left()}")

    def _left(self) -> str:
        """Said of the time left, from the mean of the runs so far."""
        runs = len(self.waiting) + len(self.running)
        minutes = sum(self._took) / len(self._took) * runs / self._side_by_side / 60
        if not runs:
            return ""
        return f", {minutes / 60:.1f} hours left" if minutes > 90 else f", {minutes:.0f} min left"


def _log(out: Path, name: str) -> Path:
    return out / "logs" / f"{name}.log"


def _start(out: Path, job: Job, values: Mapping[str, Any]) -> subprocess.Popen[bytes]:
    log = _log(out, job.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [*program(job.program), *job.command(str(out), values)]
    flags = f"{ALONE['XLA_FLAGS']} {os.environ.get('XLA_FLAGS', '')}".strip()
    with log.open("ab") as file:
        file.write(f"+ {' '.join(command)}\n".encode())
        file.flush()
        return subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | ALONE | {"XLA_FLAGS": flags},
            start_new_session=True,  # a Ctrl-C reaches it once, from here
        )


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Has runs save and end."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
    for process in processes:
        process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"{lines[-1][:300]} ({log})" if lines else str(log)
