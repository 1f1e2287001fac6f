"""What a run leaves for its reader: numbers, transcripts, and a sign of life on the terminal.

`metrics.jsonl` is the record of a run: one line per report and no clock times of its own, so that a
run which was killed and resumed ends with the same lines as one that was not. TensorBoard files
mirror it.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import rich.console
import rich.progress
import tensorboardX

from atod_jax.records import Trajectory, Turn

RESERVED = ("step", "non_finite")
Columns = Mapping[str, Sequence[float]]  # name -> one number per turn


class Writer:
    """Writes the metrics and transcripts of one run into its folder.

    Args:
        workdir: the run's folder; made when missing.
        resume_step: the step the run goes on from. Lines of this and later steps are dropped, since
            the run is about to write them again; 0, a fresh run, starts an empty record.

    Raises:
        ValueError: `metrics.jsonl` holds a line that is not a record.
    """

    def __init__(self, workdir: str | Path, *, resume_step: int = 0) -> None:
        self._workdir = Path(workdir)
        self._workdir.mkdir(parents=True, exist_ok=True)
        path = self._workdir / "metrics.jsonl"
        if path.exists():
            _drop_from(path, resume_step)
        self._lines = path.open("a", encoding="utf-8")
        self._board = _board(self._workdir / "tensorboard", resume_step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line, on disk before this returns.

        A value that is not finite becomes null, since JSON has no such number, and its key and kind
        are listed under "non_finite".

        Raises:
            ValueError: a key is one of `RESERVED`.
        """
        taken = [key for key in RESERVED if key in values]
        if taken:
            raise ValueError(f"metric names {taken} are reserved; rename them")
        numbers = {key: float(value) for key, value in values.items()}
        self._lines.write(_line(step, numbers))
        self._lines.flush()
        for key, value in numbers.items():
            self._board.add_scalar(key, value, step)
        self._board.flush()

    def text(self, step: int, name: str, content: str) -> None:
        """Writes `text/<step>-<name>.txt` and shows it in TensorBoard's text tab."""
        _write(self._workdir / "text" / f"{step:06d}-{name}.txt", content)
        self._board.add_text(name, content, step)

    def transcripts(
        self,
        step: int,
        name: str,
        episodes: Sequence[Trajectory],
        columns: Sequence[Columns] | None = None,
    ) -> None:
        """Writes episodes twice: for programs (`.jsonl`) and for people (`.txt`).

        The files are `transcripts/<step>-<name>.*`; one line or section per trajectory.

        Args:
            step: training step.
            name: what the episodes are, e.g. "train" or "eval".
            episodes: finished trajectories.
            columns: per episode, numbers to show with each turn, e.g. {"d": [...], "h": [...],
                "w": [...]} for turn disagreement, uncertainty and weight.

        Raises:
            ValueError: a column does not have one number per turn.
        """
        columns = [{}] * len(episodes) if columns is None else columns
        records = [_episode_record(e, c) for e, c in zip(episodes, columns, strict=True)]
        stem = self._workdir / "transcripts" / f"{step:06d}-{name}"
        lines = [json.dumps(r, ensure_ascii=False, allow_nan=False) + "\n" for r in records]
        _write(stem.with_suffix(".jsonl"), "".join(lines))
        _write(stem.with_suffix(".txt"), "\n".join(_episode_text(r) for r in records))

    def close(self) -> None:
        """Flushes and closes the files."""
        self._lines.close()
        self._board.close()


class Muted:
    """What processes other than the first have for a Writer."""

    def scalars(self, *args: Any, **kwargs: Any) -> None:
        """Nothing."""

    transcripts = close = scalars


# --------------------------------------------------------------------------------- the JSONL record


def _line(step: int, values: Mapping[str, float]) -> str:
    record: dict[str, Any] = {"step": int(step)} | {k: _finite(v) for k, v in values.items()}
    odd = {key: str(value) for key, value in values.items() if not math.isfinite(value)}
    if odd:
        record["non_finite"] = odd
    return json.dumps(record, allow_nan=False) + "\n"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _drop_from(path: Path, step: int) -> None:
    """Keeps the lines before `step`; a last line cut short by a kill goes too."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    kept = [line for number, line in enumerate(lines, 1) if _step_of(path, number, line) < step]
    _write(path, "".join(kept))


def _step_of(path: Path, number: int, line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}, line {number} is not a metrics record; delete the line or choose another "
            "workdir"
        ) from error


def _board(folder: Path, resume_step: int) -> tensorboardX.SummaryWriter:
    """Event files cannot be cut, but a reader can be told to forget what came after a step."""
    if resume_step == 0:  # tensorboardX does not write the mark for step 0
        for path in folder.glob("events.out.tfevents.*"):
            path.unlink()
    return tensorboardX.SummaryWriter(str(folder), purge_step=resume_step)


def _write(path: Path, content: str) -> None:
    """Writes through a second file, so that a kill leaves the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


# -------------------------------------------------------------------------------------- transcripts


def _episode_record(episode: Trajectory, columns: Columns) -> dict[str, Any]:
    for name, values in columns.items():
        if len(values) != len(episode.turns):
            raise ValueError(
                f"column {name!r} has {len(values)} values for {len(episode.turns)} turns of task "
                f"{episode.task.id}"
            )
    return {
        "task": episode.task.id,
        "kind": episode.task.kind,
        "group": int(episode.group),
        "success": bool(episode.success),
        "stop": episode.stop.name,
        "total_reward": _finite(episode.total_reward),
        "turns": [
            _turn_record(turn) | {name: _finite(float(v[k])) for name, v in columns.items()}
            for k, turn in enumerate(episode.turns)
        ],
    }


def _turn_record(turn: Turn) -> dict[str, Any]:
    return {
        "observation": turn.observation,
        "response": turn.response,
        "command": turn.command,
        "valid": bool(turn.valid),
        "reward": _finite(float(turn.reward)),
        "tokens": len(turn.action),
    } | ({"replayed": True} if turn.replayed else {})


def episode_text(episode: Trajectory, columns: Columns) -> str:
    """An episode for people; `columns` as for `Writer.transcripts`."""
    return _episode_text(_episode_record(episode, columns))


TURN_TEXT = ("observation", "response", "command", "valid", "tokens", "replayed")


def _episode_text(record: Mapping[str, Any]) -> str:
    outcome = "solved" if record["success"] else "not solved"
    head = (
        f"{'=' * 100}\ntask {record['task']} ({record['kind']}), group {record['group']}: "
        f"{outcome} after {len(record['turns'])} turns, stopped by {record['stop']}, "
        f"reward {record['total_reward']}\n{'=' * 100}\n"
    )
    return head + "".join(_turn_text(k, turn) for k, turn in enumerate(record["turns"]))


def _turn_text(number: int, turn: Mapping[str, Any]) -> str:
    extra = "".join(
        f"  {name} {'not finite' if value is None else format(value, '.4g')}"
        for name, value in turn.items()
        if name not in TURN_TEXT
    )
    valid = "" if turn["valid"] else "  INVALID"
    if "replayed" in turn:
        extra = "  replayed for the student"
    return (
        f"\n--- turn {number + 1}: {turn['tokens']} tokens{extra}{valid}\n"
        f"{_indented('sees', turn['observation'])}{_indented('says', turn['response'])}"
        f"{_indented('does', turn['command'])}"
    )


def _indented(label: str, text: str) -> str:
    lines = text.splitlines() or [""]
    return "".join(f"{label if i == 0 else '':>4} | {line}\n" for i, line in enumerate(lines))


# ----------------------------------------------------------------------------------------- progress


class Progress:
    """A progress bar with the time left; plain lines every few seconds where there is no terminal.

    Args:
        total: number of steps of the whole run.
        start: step the run goes on from; the estimate of the time left counts from here.
        description: a few words on what runs.
        show: which of the values given to `advance` to show, where they are present.
        stream: where to write; None: standard error.
        every: seconds between plain lines.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        total: int,
        *,
        start: int = 0,
        description: str = "",
        show: Sequence[str] = ("rollout/success", "seconds/step"),
        stream: TextIO | None = None,
        every: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._start, self._done = total, start, start
        self._description, self._show = description, show
        stream = stream or sys.stderr
        self._stream, self._every, self._clock = stream, every, clock
        self._began, self._last_line = clock(), -math.inf
        self._bar = _bar(stream, total, start) if stream.isatty() else None

    def advance(self, values: Mapping[str, float]) -> None:
        """Shows that one more step is finished."""
        self._done += 1
        shown = [f"{name} {values[name]:.3g}" for name in self._show if name in values]
        text = "  ".join([self._description, *shown])
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done, description=text)
        else:
            self._print(text)

    def close(self) -> None:
        """Leaves the terminal as it was; may be called again."""
        if self._bar is not None:
            self._bar.stop()

    def _print(self, text: str) -> None:
        now = self._clock()
        if now - self._last_line < self._every and self._done < self._total:
            return
        self._last_line = now
        left = _time_left(now - self._began, self._done - self._start, self._total - self._done)
        print(
            f"step {self._done}/{self._total}, {left} left  {text}", file=self._stream, flush=True
        )


def _bar(stream: TextIO, total: int, start: int) -> rich.progress.Progress:
    bar = rich.progress.Progress(
        rich.progress.BarColumn(bar_width=30),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(elapsed_when_finished=True),
        rich.progress.TextColumn("{task.description}"),
        console=rich.console.Console(file=stream),
    )
    bar.add_task("", total=total, completed=start)
    bar.start()
    return bar


def _time_left(elapsed: float, done: int, remaining: int) -> str:
    """Minutes and seconds at the pace so far."""
    seconds = round(elapsed / done * remaining)
    return f"{seconds // 60}:{seconds % 60:02d}"
