"""What is under way, how far it is and how long it will take: a panel, or plain lines."""

import contextlib
import math
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType

from atod_jax.results.panel import History, Status, Underway, clock_text, panel
from atod_jax.results.terminal import Terminal

LINES = 15.0  # seconds between plain lines
SHORT = 2.0  # of fewer seconds of playing nothing is said
SHOWN = ("rollout/success", "seconds/step")


class Pace:
    """Seconds that steps and episodes of evaluations take, as they did of late.

    The first step, and others in which something was compiled, count only until there is one
    without, and of them the shortest: what else they take, tracing above all, does not come again.
    """

    def __init__(self) -> None:
        self._clean: deque[float] = deque(maxlen=20)
        self._others: deque[float] = deque(maxlen=3)
        self._episodes: deque[float] = deque(maxlen=3)

    def step(self, seconds: float, compiling: float) -> None:
        """Books a step, of which `compiling` seconds went into compiling."""
        is_first = not (self._clean or self._others)
        steps = self._others if is_first or compiling > 0.05 * seconds else self._clean
        steps.append(seconds - compiling)

    def evaluation(self, seconds: float, episodes: int) -> None:
        """Books an evaluation, without the seconds in which something was compiled."""
        self._episodes.append(seconds / episodes)

    def left(self, steps: int, episodes: int) -> float:
        """Seconds for so many steps and episodes; nan while there is too little to tell."""
        if not self._clean and len(self._others) < 2:
            return math.nan
        per_step = statistics.median(self._clean) if self._clean else min(self._others)
        per_episode = statistics.median(self._episodes) if self._episodes else 0.0
        return steps * per_step + episodes * per_episode


class Progress:
    """How far a run is: drawn on a terminal, elsewhere a line every LINES seconds.

    Args:
      terminal: draws it; None: there are lines only.
      total: steps of the whole run; 0: there are evaluations alone.
      title: what runs, in a few words.
      lost: seconds so far that will not come again, those of compiling.
      quiet: shows nothing; of several processes one is enough.
      clock: seconds, for tests.
    """

    def __init__(
        self,
        terminal: Terminal | None = None,
        *,
        total: int = 0,
        title: str = "",
        lost: Callable[[], float] = lambda: 0.0,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._terminal, self._quiet, self._lost, self._clock = terminal, quiet, lost, clock
        self._history, self._pace = History(), Pace()
        self._status = Status(title, done=0, total=total, left=math.nan)
        self._last_line, self._end = -math.inf, math.nan
        self._start_step()
        drawn = terminal is not None and not quiet and terminal.draw(self._draw)
        self._log = terminal.note if drawn and terminal is not None else None

    def begin(self, first: int, records: Sequence[Mapping[str, Any]] = ()) -> None:
        """The run goes on from step `first`, with the records of the steps before it."""
        for record in records:
            if record["step"] < first:
                self._history.book(record)
        self._status = self._status._replace(done=first)
        self._start_step()

    def advance(self, scalars: Mapping[str, float], coming: int = 0) -> None:
        """One more step is finished; evaluations of `coming` episodes follow until the end."""
        now, lost = self._clock(), self._lost()
        self._pace.step(now - self._began - self._aside, lost - self._lost_before)
        self._history.book(scalars)
        done, total = self._status.done + 1, self._status.total
        self._end = now + self._pace.left(total - done, coming)
        self._status = self._status._replace(done=done)
        self._start_step()
        if now - self._last_line >= LINES or done == total:
            shown = [f"{name} {scalars[name]:.3g}" for name in SHOWN if name in scalars]
            left = self._left()
            rest = f", {clock_text(left)} left" if math.isfinite(left) else ""
            parts = [f"step {done}/{total}{rest}", self._status.title, *shown]
            self._tell("  ".join(filter(None, parts)))

    @contextlib.contextmanager
    def evaluation(
        self, name: str, episodes: int, *, again: bool = True
    ) -> Iterator[Callable[[int], None]]:
        """While an evaluation is played; what it yields is told how many episodes have ended.

        Args:
          name: what is evaluated.
          episodes: how many there will be.
          again: whether more like it follow, so that its seconds say something about the end.
        """
        began, lost = self._clock(), self._lost()
        try:
            with self.playing(name, episodes) as ended:
                yield ended
        finally:
            seconds, compiling = self._clock() - began, self._lost() - lost
            self._aside += seconds
            self._lost_before += compiling
        if again:
            self._pace.evaluation(seconds - compiling, episodes)

    @contextlib.contextmanager
    def playing(self, name: str, episodes: int) -> Iterator[Callable[[int], None]]:
        """While episodes are played; what it yields is told how many have ended."""
        began = self._clock()

        def ended(count: int) -> None:
            now = self._clock()
            if now - began >= SHORT:
                self._status = self._status._replace(underway=Underway(name, count, episodes))
                if now - max(began, self._last_line) >= LINES:
                    self._tell(f"{name}: {count} of {episodes} episodes played")

        try:
            yield ended
        finally:
            self._status = self._status._replace(underway=None)

    def evaluated(self, step: int, scalars: Mapping[str, float]) -> None:
        """What an evaluation after `step` steps has found."""
        self._history.book({"step": step, **scalars})

    def close(self) -> None:
        """Draws for the last time; may be called again."""
        if self._terminal is not None:
            self._terminal.leave()

    def _start_step(self) -> None:
        self._began, self._lost_before = self._clock(), self._lost()
        self._aside = 0.0  # seconds of evaluations within the step

    def _left(self) -> float:
        return max(0.0, self._end - self._clock()) if math.isfinite(self._end) else math.nan

    def _draw(self) -> RenderableType:
        return panel(self._status._replace(left=self._left()), self._history)

    def _tell(self, line: str) -> None:
        self._last_line = self._clock()
        if self._log is not None:
            self._log(line)
        elif not self._quiet:
            print(line, file=sys.stderr, flush=True)
