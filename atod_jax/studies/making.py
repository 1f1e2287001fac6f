"""Makes the runs of a study that are missing, several side by side, each a process of its own."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from atod_jax.results.files import write_text
from atod_jax.results.runs import read_evaluation
from atod_jax.studies.plan import Job

# One thread per run: tiny matrices gain nothing from two, two runs do.
ALONE = "--xla_cpu_multi_thread_eigen=false"
POLL = 0.5  # seconds


def is_done(out: Path, job: Job) -> bool:
    """Whether a run has come to its end, its export included."""
    return _mark(out, job.name).is_file()


def _mark(out: Path, name: str) -> Path:
    return out / "finished" / name.replace("/", "--")


def chosen(out: Path, job: Job, named: Mapping[str, Job]) -> dict[str, Any]:
    """The values of the options that are tuned: of the jobs that tried them, those of the best.

    Raises:
      FileNotFoundError: one of those is not finished.
    """
    return {
        option: named[max(tried, key=lambda name: final_rate(out, name))].options[option]
        for option, tried in job.tuned.items()
    }


def final_rate(out: Path, name: str) -> float:
    """Mean success of a finished run over its temperatures."""
    paths = sorted((out / "runs" / name / "evaluations").glob("final-T*.json"))
    if not paths:
        raise FileNotFoundError(f"{out / 'runs' / name} is not finished")
    return sum(read_evaluation(path).rate().value for path in paths) / len(paths)


def make(
    out: Path,
    jobs: Sequence[Job],
    *,
    side_by_side: int,
    tell: Callable[[str], None],
    finished: Callable[[], None] = lambda: None,
) -> list[str]:
    """Makes what is missing; returns the names of the runs that failed or could not begin.

    Where it is interrupted the runs save and end; the same command goes on with them.

    Args:
      out: the folder of the study.
      jobs: in an order in which each comes after what it needs.
      side_by_side: how many run at a time.
      tell: told a line whenever a run begins or ends.
      finished: called after every run that ended well.

    Raises:
      KeyboardInterrupt: after the runs have ended.
    """
    named = {job.name: job for job in jobs}
    waiting = [job for job in jobs if not is_done(out, job)]
    done = set(named) - {job.name for job in waiting}
    running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
    failed: list[str] = []
    took: list[float] = []
    try:
        while waiting or running:
            for job in [j for j in waiting if set(j.before) & set(failed)]:
                waiting.remove(job)
                failed.append(job.name)
                tell(f"left out: {job.name}, which needs a run that failed")
            ready = [job for job in waiting if set(job.before) <= done]
            for job in ready[: side_by_side - len(running)]:
                waiting.remove(job)
                running[job.name] = (_start(out, job, chosen(out, job, named)), time.monotonic())
            time.sleep(POLL)
            for name in [n for n, (process, _) in running.items() if process.poll() is not None]:
                process, began = running.pop(name)
                if process.returncode == 0:
                    done.add(name)
                    write_text(_mark(out, name), "")
                    took.append(time.monotonic() - began)
                    left = len(waiting) + len(running)
                    tell(
                        f"{name} done, {len(done)} of {len(jobs)}{_left(took, left, side_by_side)}"
                    )
                    finished()
                else:
                    failed.append(name)
                    tell(f"failed: {name}: {_last_line(_log(out, name))}")
    except BaseException:
        _stop([process for process, _ in running.values()])
        raise
    return failed


def _left(took: Sequence[float], runs: int, side_by_side: int) -> str:
    """Said of the time left, from the mean of the runs so far."""
    if not runs:
        return ""
    minutes = sum(took) / len(took) * runs / side_by_side / 60
    return f", about {minutes / 60:.1f} hours left" if minutes > 90 else f", {minutes:.0f} min left"


def _log(out: Path, name: str) -> Path:
    return out / "logs" / f"{name.replace('/', '--')}.log"


def _start(out: Path, job: Job, values: Mapping[str, Any]) -> subprocess.Popen[bytes]:
    log = _log(out, job.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "atod_jax.train", *job.command(str(out), values)]
    flags = f"{ALONE} {os.environ.get('XLA_FLAGS', '')}".strip()
    with log.open("ab") as file:
        file.write(f"+ {' '.join(command)}\n".encode())
        file.flush()
        return subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"XLA_FLAGS": flags},
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
