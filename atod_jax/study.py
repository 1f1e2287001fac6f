"""Many runs that answer questions together: made where they are missing, and read as one.

    python -m atod_jax.study --config=configs/study.py:quick
    python -m atod_jax.study --config=configs/study.py --plan

Every run is an ordinary one of `train` below OUT/runs; OUT is runs/study-quick for the first. The
same command goes on where it was interrupted, and given on several machines with a shared folder
they share the work. Ends with study.md, pictures, study.html and results.jsonl.xz: what was found,
a few kilobytes a run, with which --known goes on elsewhere.
"""

import argparse
import contextlib
import dataclasses
import functools
import os
import re
import shlex
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from atod_jax.config import files
from atod_jax.results.lock import locked
from atod_jax.results.page import write_page
from atod_jax.results.runs import RunRecord
from atod_jax.run import cli
from atod_jax.run.workdir import read_record
from atod_jax.studies.finished import Shelf
from atod_jax.studies.making import ALONE, chosen, make, require_own
from atod_jax.studies.page import power, write_study
from atod_jax.studies.plan import Cell, Job, Study, to_make


def report(study: Study, shelf: Shelf) -> Path:
    """Writes what has been found so far.

    Raises:
      ValueError: a run was made in another way than this study makes it.
    """
    require_own(shelf, study.jobs)  # a sweep that has just ended may have chosen another value
    shelf.keep(job.name for job in study.jobs)
    with locked(shelf.out, wait=True):  # another machine's study may end just now
        path = write_study(study, shelf)
        runs = [run for cell in study.cells if (run := _shown(cell, shelf))]
        if runs:
            write_page(shelf.out / "study.html", runs)
    return path


def _shown(cell: Cell, shelf: Shelf) -> RunRecord | None:
    """The first run of a method whose folder is there."""
    for seed, name in cell.jobs.items():
        if shelf.is_made(name):
            run = read_record(str(shelf.folder(name)))
            return dataclasses.replace(run, name=f"{cell.setting}, {cell.method}, seed {seed}")
    return None


def plan(study: Study, shelf: Shelf, jobs: list[Job]) -> None:
    """Prints what would be made, and what the design could see."""
    done = sum(job.name in shelf for job in study.jobs)
    print(f"# {study.title}: {len(study.jobs)} runs, {done} of them finished", file=sys.stderr)
    print(f"# {power(study)}", file=sys.stderr)
    said = " ".join(f"{name}={shlex.quote(value)}" for name, value in ALONE.items())
    print(f"# {said} goes before each")
    named = {job.name: job for job in study.jobs}
    for job in jobs:
        values, later = {}, ""
        try:
            values = chosen(shelf, job, named)
        except FileNotFoundError:  # it waits for the runs that try the values
            later = "".join(f"  # {option} is still missing: the best of {', '.join(tried)}"
                            for option, tried in job.tuned.items())  # fmt: skip
        command = shlex.join(job.command(str(shelf.out), values))
        print(f"{'# ' if later else ''}python -m atod_jax.{job.program} {command}{later}")


def parse(arguments: Iterable[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = cli.Parser("study", __doc__)
    add = parser.add_argument
    add("--config", required=True, metavar="FILE[:variant]", help="a file with get_study()")
    add("--out", type=Path, metavar="DIR", help="folder of the study; named after it below runs")
    side = "runs side by side; not given: one per core; give 1 where they share an accelerator"
    add("--jobs", type=int, default=os.cpu_count() or 1, help=side)
    add("--only", default="*", metavar="NAMES", help="runs such as mid/*,*-0, and what they need")
    add("--known", type=Path, metavar="FILE", help="results of another study, which are taken over")
    stop = parser.add_mutually_exclusive_group().add_argument
    stop("--plan", action="store_true", help="print the commands of what is missing, and stop")
    stop("--report", action="store_true", help="write what has been found so far, and stop")
    return parser.read(arguments)


def main(arguments: Iterable[str] | None = None) -> None:
    """Command line."""
    with cli.short_errors():
        given = parse(arguments)
        study = files.made_by(
            given.config, "get_study", kind=Study, otherwise="let it return a Study"
        )
        if given.jobs < 1:
            raise ValueError(f"--jobs={given.jobs}: give at least 1")
        out = (given.out or _named(given.config)).expanduser()
        if "," in str(out):
            raise ValueError(f"--out={out}: a comma there cannot be written in a config's variant")
        if out.exists() and not out.is_dir():
            raise ValueError(f"--out={out} is a file; name a folder")
        shelf = Shelf(out, given.known and given.known.expanduser())
        only = given.only.split(",")
        if other := require_own(shelf, study.jobs):
            some = f"; so for {len(other) - 1} more" if len(other) > 1 else ""
            print(f"not taken over from {given.known}: {other[0]}{some}", file=sys.stderr)
        jobs = to_make(study.jobs, only, is_found=shelf.__contains__, is_made=shelf.is_made)
        if given.plan:
            return plan(study, shelf, jobs)
        failed, interrupted = [], False
        if not given.report:
            out.mkdir(parents=True, exist_ok=True)
            tell = functools.partial(print, flush=True)
            try:
                with _stoppable():
                    failed = make(shelf, jobs, every=study.jobs, side_by_side=given.jobs, tell=tell)
            except KeyboardInterrupt:
                interrupted = True
        path = report(study, shelf)
        if interrupted:
            print(f"interrupted; {path}; the same command goes on", file=sys.stderr)
            sys.exit(130)
        print(path)
        if failed:
            raise ValueError(f"{len(failed)} runs failed, {failed[0]} first; the same command "
                             "tries them again")  # fmt: skip


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGINT, SIGTERM and the end of a terminal raise KeyboardInterrupt, so that the runs are told;
    elsewhere they end the program at once, since nothing can be lost."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as `nohup` has it
        numbers.append(signal.SIGHUP)
    for number in numbers:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _named(name: str) -> Path:
    """runs/FILE-variant: other variants are other runs."""
    file, _, variant = name.partition(":")
    return Path("runs") / "-".join(
        filter(None, [Path(file).stem, re.sub(r"[^\w.]+", "-", variant)])
    )


if __name__ == "__main__":
    main()
