"""The numbers of a run: `metrics.jsonl`, mirrored by TensorBoard files and by trackers.

The record has one line per report and no clock times of its own, so that a run which was killed
and resumed ends with the same lines as one that was not.
"""

import contextlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorboardX
from tensorboardX.summary import hparams

from atod_jax.results.files import write_text
from atod_jax.results.trackers import Tracker

RECORD = "metrics.jsonl"
RESERVED = ("step", "non_finite")


class Writer:
    """Writes the metrics of one run into its folder.

    Args:
      workdir: the run's folder; made when missing.
      resume_step: the step the run goes on from. Lines of this and later steps are dropped, since
        the run is about to write them again; 0, a fresh run, starts an empty record.

    Raises:
      ValueError: `metrics.jsonl` holds a line that is not a record.
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        resume_step: int = 0,
        options: Mapping[str, Any] | None = None,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        workdir = Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / RECORD
        there = _drop_from(path, resume_step)
        if missing := sorted(set(range(resume_step)) - there):
            print(
                f"warning: {path} has no record of {len(missing)} of the {resume_step} steps "
                f"before this one, step {missing[0]} the first; curves will lack them",
                file=sys.stderr,
            )
        self._lines = path.open("a", encoding="utf-8")
        self._board = _board(workdir / "tensorboard", resume_step)
        self._trackers = trackers
        events = self._board.file_writer
        if options and events:
            words = {k: v if isinstance(v, int | float) else str(v) for k, v in options.items()}
            for summary in hparams(words, {"eval/success": 0.0}):
                events.add_summary(summary)

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
        finite = {key: value for key, value in numbers.items() if math.isfinite(value)}
        for tracker in self._trackers:
            tracker.scalars(finite, step)

    def text(self, step: int, name: str, text: str) -> None:
        """Adds something to read, for TensorBoard."""
        self._board.add_text(name, "".join(f"    {line}\n" for line in text.splitlines()), step)

    def close(self) -> None:
        """Flushes and closes everything."""
        with contextlib.ExitStack() as stack:  # each, whatever becomes of the others
            for part in (self._lines, self._board, *self._trackers):
                stack.callback(part.close)


class Muted:
    """In place of a Writer in all processes but the first: it writes nothing."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes nothing."""

    def text(self, step: int, name: str, text: str) -> None:
        """Writes nothing."""

    def close(self) -> None:
        """Has nothing to close."""


def read_records(workdir: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's record; none where it has not begun.

    The run may still be going on: a last line that is not whole yet is left out.

    Raises:
      ValueError: another line is not a record.
    """
    path = Path(workdir) / RECORD
    return [_record(path, number, line) for number, line in _whole_lines(path)]


def _line(step: int, values: Mapping[str, float]) -> str:
    finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
    record: dict[str, Any] = {"step": int(step)} | finite
    odd = {key: str(value) for key, value in values.items() if not math.isfinite(value)}
    if odd:
        record["non_finite"] = odd
    return json.dumps(record, allow_nan=False) + "\n"


def _drop_from(path: Path, step: int) -> set[int]:
    """Keeps the lines before `step` and returns the steps that they tell of, evaluations left out;
    a last line cut short by a kill goes too."""
    lines = [(_record(path, number, line), line) for number, line in _whole_lines(path)]
    kept = [(record, line) for record, line in lines if record["step"] < step]
    if path.exists():
        write_text(path, b"".join(line for _, line in kept).decode())
    return {r["step"] for r, _ in kept if not all(k.startswith(("eval/", *RESERVED)) for k in r)}


def _whole_lines(path: Path) -> list[tuple[int, bytes]]:
    """(number, line) of the lines that end, from 1."""
    if not path.is_file():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    return [(number, line) for number, line in enumerate(lines, 1) if line.endswith(b"\n")]


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
        return record | {"step": int(record["step"])}
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
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
