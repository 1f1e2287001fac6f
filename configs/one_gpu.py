"""Supervised student and teacher, then ATOD, OPD and GRPO from the same student, side by side.

    bash launch/one_gpu.sh MODEL GAMES [--out=DIR] [--minutes=N] [--plan]
    bash launch/one_gpu.sh --tiny

MODEL: smollm2, qwen2.5-coder-0.5b, another hub name, or a Hugging Face folder. GAMES: an official
ALFWorld folder or games.jsonl[.xz]. Every stage has a time after which it is stopped in good order
and its model taken as it is. A stage whose model folder is there is not run again; one that was
interrupted goes on. configs/real.py (size=gpu, size=tiny) holds the sizes.
"""

import argparse
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from atod_jax.models import hub
from atod_jax.results.tables import markdown_table
from atod_jax.run import workdir as workdirs
from atod_jax.run.models import local_path

from . import real

MINUTES = 12.0
GRACE = 60  # seconds that a stopped stage has for its checkpoint
# What each stage learns with, and its share of the time; the teacher is supervised for longer.
SHARES = {"student": 0.16, "teacher": 0.24, "atod": 0.2, "opd": 0.2, "grpo": 0.2}
TEACHER_STEPS = {"gpu": 32, "tiny": 40}
SECONDS_TO_COMPARE = 20
PYTHON = [sys.executable, "-P", "-m"]  # -P: nothing of the folder it runs in is imported
NO_GPU = (
    "JAX sees no GPU here: launch/one_gpu.sh installs its plug-in, `python -m atod_jax doctor` says"
    " more; --tiny runs everything on a CPU with tiny models"
)


class Stage(NamedTuple):
    """One training run, and what makes a model of what it got to."""

    name: str
    seconds: float  # that it may take
    train: list[str]
    workdir: Path
    export: list[str]  # writes `model` from the last checkpoint
    model: Path  # the folder that is there when the stage is over


def plan(
    out: Path, model: str, *, games: str = "", size: str = "gpu", minutes: float = MINUTES
) -> list[Stage]:
    """All stages, in order.

    Args:
      out: holds a folder `runs` and a folder `models`, a name of a stage in each.
      model: hub name or folder that student and teacher start from.
      games: of env.alfworld.games; "" plays generated ones.
      size: of configs/real.py.
      minutes: for all of them together, and the comparison.
    """
    time = 60 * minutes - SECONDS_TO_COMPARE
    stages = []
    for name, share in SHARES.items():
        steps = f",steps={TEACHER_STEPS[size]}" if name == "teacher" else ""
        supervised = name in ("student", "teacher")
        options = {
            "config": f"real:algo={'sft' if supervised else name},size={size}{steps}",
            "workdir": out / "runs" / name,
            "config.student.path": model if supervised else out / "models" / "student",
            "config.export": out / "models" / name,
        }
        if name in ("atod", "opd"):
            options["config.teacher.path"] = out / "models" / "teacher"
        if games:
            options["config.env.alfworld.games"] = games
        train = [*PYTHON, "atod_jax.train", *(f"--{k}={v}" for k, v in options.items())]
        workdir, made = out / "runs" / name, out / "models" / name
        export = [*PYTHON, "atod_jax.export", f"--checkpoint={workdir}", f"--out={made}"]
        stages.append(Stage(name, share * time, train, workdir, export, made))
    return stages


def carry_out(stage: Stage) -> None:
    """Runs a stage, or what is left of it, and makes sure that its model folder is there.

    Raises:
      SystemExit: it failed or was interrupted, with its own status; or its time was too short for
        a single step.
    """
    if is_done(stage):
        print(f"have {stage.model}", file=sys.stderr)
        return
    status = run(stage.train, stage.seconds)
    if status:
        print(f"{stage.name} ended with status {status}", file=sys.stderr)
        raise SystemExit(status if status > 0 else 128 - status)
    if is_done(stage):
        return
    if not (stage.workdir / workdirs.RECORD).is_file():  # pinned by the first finished step
        raise SystemExit(
            f"error: {stage.name} finished no step in {stage.seconds:.0f} s; the same command with "
            f"a larger --minutes goes on"
        )
    print(f"{stage.name}: its time is over; its model is the one so far", file=sys.stderr)
    if status := run(stage.export, GRACE):
        raise SystemExit(status)


def is_done(stage: Stage) -> bool:
    """Whether the stage has left its model."""
    return (stage.model / "config.json").is_file()


def run(command: Sequence[str], seconds: float | None = None) -> int:
    """The exit status of a command, 0 for one that had to be stopped; signals are handed on."""
    print(f"+ {shlex.join(command)}", file=sys.stderr, flush=True)
    child = subprocess.Popen(command)
    both = (signal.SIGINT, signal.SIGTERM)
    before = {n: signal.signal(n, lambda *_: child.terminate()) for n in both}
    try:
        return child.wait(seconds)
    except subprocess.TimeoutExpired:
        child.terminate()
        try:
            child.wait(GRACE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        return 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def comparison(stages: Sequence[Stage], out: Path) -> list[str]:
    """The command that draws all runs as one table and one picture."""
    runs = [f"{stage.name}={stage.workdir}" for stage in stages]
    return [*PYTHON, "atod_jax.compare", f"--out={out}", *runs]


def shown(stages: Sequence[Stage], last: Sequence[str]) -> str:
    """The plan as a table, and its commands."""
    rows = [[s.name, f"{s.seconds:.0f}", "done" if is_done(s) else ""] for s in stages]
    commands = [shlex.join(c) for c in [*(s.train for s in stages), last]]
    return "\n\n".join([markdown_table(["stage", "seconds", ""], rows), "\n".join(commands)])


def model_of(name: str) -> str:
    """A model by its short name, hub name or folder, as it is told to every stage.

    Raises:
      ValueError: it is none of them.
    """
    name = real.path_of(name)
    if local_path(name, "config.json"):
        return str(Path(name).resolve()) if Path(name).is_dir() else name
    if hub.is_name(name) and not Path(name).exists():
        return name
    raise ValueError(
        f"MODEL={name!r}: no Hugging Face folder (no config.json in it) and no hub name; try "
        "smollm2, or `hf download NAME --local-dir DIR` and DIR"
    )


def require_same(stages: Sequence[Stage], model: str, games: str) -> None:
    """Finished stages are taken as they are, so they must be of this model and these games.

    Raises:
      ValueError: the folder holds others.
    """
    workdir = stages[0].workdir
    if not (workdir / workdirs.RECORD).is_file():
        return
    had = workdirs.read_definition(workdir)
    for what, path, new in (
        ("model", "student.path", model),
        ("games", "env.alfworld.games", games),
    ):
        if had[path] != new:
            raise ValueError(
                f"{workdir}: begun with the {what} {had[path]!r}, not {new!r}; give another --out"
            )


def games_of(name: str) -> str:
    """The games by their path.

    Raises:
      FileNotFoundError: nothing is there.
    """
    if not Path(name).exists():
        raise FileNotFoundError(
            f"GAMES={name!r}: nothing there; name a games.jsonl[.xz] or an official data folder "
            "(pip install alfworld==0.4.2 && alfworld-download)"
        )
    return str(Path(name).resolve())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launch/one_gpu.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help="hub name or folder")
    add("games", nargs="?", metavar="GAMES", help="file or folder")
    add("--out", type=Path, help="runs, models and comparison; default runs/one_gpu")
    add("--minutes", type=float, default=MINUTES, help=f"for everything; default {MINUTES:g}")
    add("--plan", action="store_true", help="print the stages and their commands, run nothing")
    add("--tiny", action="store_true", help="shipped tiny models and generated games, on any CPU")
    return parser


def _stages(given: argparse.Namespace, out: Path) -> list[Stage]:
    if given.minutes < 1:
        raise ValueError(f"--minutes={given.minutes:g}: give at least 1")
    if given.tiny and given.model:
        raise ValueError(f"--tiny has its own model and games; leave out {given.model!r}")
    if not given.tiny and not given.games:
        missing = "GAMES is" if given.model else "MODEL and GAMES are"
        raise ValueError(f"{missing} missing: launch/one_gpu.sh MODEL GAMES, or --tiny")
    size, games = ("tiny", "") if given.tiny else ("gpu", games_of(given.games))
    model = model_of("tiny" if given.tiny else given.model)
    stages = plan(out, model, games=games, size=size, minutes=given.minutes)
    require_same(stages, model, games)
    return stages


def main(arguments: Iterable[str] | None = None) -> None:
    """Command line."""
    parser = _parser()
    given = parser.parse_args(None if arguments is None else list(arguments))
    out = (given.out or Path("runs") / ("one_gpu_tiny" if given.tiny else "one_gpu")).resolve()
    try:
        stages = _stages(given, out)
    except (FileNotFoundError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    last = comparison(stages, out)
    if given.plan:
        print(shown(stages, last))
        return
    if not given.tiny and run([sys.executable, "-c", _HAS_GPU]):
        parser.exit(2, f"error: {NO_GPU}\n")
    for stage in stages:
        carry_out(stage)
    sys.exit(run(last))


# In a process of its own: JAX takes most of the memory of a card that it has looked at.
_HAS_GPU = "import jax, sys; sys.exit(jax.default_backend() != 'gpu')"

if __name__ == "__main__":
    main()
