"""A sign of life on the terminal while a run is under way."""

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

import rich.console
import rich.progress


class Progress:
    """A progress bar with the time left; plain lines every few seconds where there is no terminal.

    Args:
      total: number of steps of the whole run.
      start: step the run goes on from; the estimate of the time left counts from here.
      description: a few words on what runs.
      show: which of the values given to `advance` to show, where they are present.
      stream: where to write; None: standard error.
      every: seconds between plain lines.
      lost: seconds so far that will not come again, such as those of compiling.
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
        lost: Callable[[], float] = lambda: 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._start, self._done = total, start, start
        self._description, self._show = description, show
        self._stream: TextIO = stream or sys.stderr
        self._every, self._clock = every, clock
        self._began, self._last_line = clock(), -math.inf
        self._lost, self._lost_before = lost, lost()
        self._bar = _bar(self._stream, total, start) if self._stream.isatty() else None

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
        elapsed = now - self._began - (self._lost() - self._lost_before)
        left = _time_left(elapsed, self._done - self._start, self._total - self._done)
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
