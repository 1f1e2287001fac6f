"""What a run says: lines on the terminal, above what is drawn there, and the same in `run.log`."""

import contextlib
import logging
import logging.handlers
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO, cast

import rich.console
import rich.live
import rich.text

LOG = "run.log"
LARGEST = 5_000_000  # bytes of the log; one older file of that size is kept beside it
REDRAWN = 2.0  # times per second


class Terminal:
    """While the block lasts, what is printed goes to the terminal and, with the time, to a log.

    Lines may come from any thread; where something is drawn they stand above it. Nothing is drawn
    on what is no terminal, or one that cannot move its cursor. The log never fails a run.

    Args:
      log: the file, continued where it is there; None: none.
    """

    def __init__(self, log: Path | None = None) -> None:
        self._log = None if log is None else _Log(log, maxBytes=LARGEST, backupCount=1, delay=True)
        self._live: rich.live.Live | None = None
        self._streams = sys.stdout, sys.stderr
        self._one = threading.Lock()  # of several threads speaks at a time

    def __enter__(self) -> "Terminal":
        self._streams = sys.stdout, sys.stderr
        out, err = (_Stream(self, stream) for stream in self._streams)
        sys.stdout, sys.stderr = cast("TextIO", out), cast("TextIO", err)
        return self

    def __exit__(self, _: object, error: BaseException | None, where: Any) -> None:
        self.leave()
        sys.stdout, sys.stderr = self._streams
        if error is not None:
            place = ""
            if type(error).__module__ == "builtins":  # our own say enough
                place = f" ({traceback.format_tb(where)[-1].strip().splitlines()[0]})"
            self.note(f"ended by {type(error).__name__}: {error}{place}")
        if self._log is not None:
            with contextlib.suppress(OSError):
                self._log.close()

    def draw(self, render: Callable[[], rich.console.RenderableType]) -> bool:
        """Draws, from now on, what `render` returns, below all lines; False: that cannot be done
        here."""
        stream = self._streams[1]
        console = rich.console.Console(file=stream, highlight=False)
        utf = (console.encoding or "").lower().startswith("utf")
        if not (_is_terminal(stream) and console.is_interactive and utf):
            return False
        self._live = rich.live.Live(
            get_renderable=render,
            console=console,
            refresh_per_second=REDRAWN,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start(refresh=True)  # lines of several threads need something to stand above
        console.show_cursor(True)  # so that a run that is killed leaves it there
        return True

    def leave(self) -> None:
        """Draws for the last time; may be called again."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def note(self, text: str) -> None:
        """Lines for the log alone."""
        if self._log is not None:
            for line in text.split("\n"):
                self._log.handle(logging.makeLogRecord({"msg": line.rpartition("\r")[2]}))

    def draws_on(self, stream: TextIO) -> bool:
        """Whether something is drawn there, so that nothing else may write to it."""
        return self._live is not None and _is_terminal(stream)

    def above(self, lines: str) -> None:
        """Whole lines above what is drawn."""
        live = self._live  # another thread may leave
        if live is not None:
            with self._one:
                live.console.print(rich.text.Text(lines), soft_wrap=True)


class _Stream:
    """In place of a standard stream, which it is in all but what it writes."""

    def __init__(self, terminal: Terminal, stream: TextIO) -> None:
        self._terminal, self._stream = terminal, stream
        self._begun: dict[int, str] = {}  # by thread: a line without its end

    def write(self, text: str) -> int:
        """Writes at once where nothing is drawn, else lines when they end."""
        thread = threading.get_ident()
        whole, newline, rest = (self._begun.pop(thread, "") + text).rpartition("\n")
        if rest:
            self._begun[thread] = rest
        if not self._terminal.draws_on(self._stream):
            self._stream.write(text)
        elif newline:
            self._terminal.above(whole)
        if newline:
            self._terminal.note(whole)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Log(logging.handlers.RotatingFileHandler):
    """Lines with their times."""

    def __init__(self, path: Path, **options: Any) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace", **options)
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))

    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk costs lines of the log, not the run."""


def _is_terminal(stream: TextIO) -> bool:
    with contextlib.suppress(ValueError, AttributeError):  # closed, or none
        return stream.isatty()
    return False
