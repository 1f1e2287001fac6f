"""Compiling: programs side by side, a line that says what takes so long."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from jax import monitoring
from jax.stages import Lowered

PROGRAMS = ("prefill", "fill", "decode", "score", "signal", "gradient", "step")
QUIET_SECONDS = 1.0  # a program that takes no longer is not worth a line
_BEGINS = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_ENDS = "/jax/core/compile/backend_compile_duration"


def together(programs: Sequence[Lowered]) -> None:
    """Compiles side by side what the next calls need."""
    if len(programs) < 2:
        return
    with ThreadPoolExecutor(len(programs)) as pool:
        list(pool.map(lambda program: program.compile(), programs))


class Compiling:
    """Watches XLA: names the large programs while they are compiled, and keeps the time.

    Args:
      programs: how many large programs the run has.
      say: shows a line.
    """

    def __init__(self, programs: int, say: Callable[[str], None]):
        self._programs, self._say = programs, say
        self._lock = threading.Lock()
        self._seen: set[str] = set()
        self._pending: dict[str, threading.Timer] = {}
        self._active, self._since, self._taken = 0, 0.0, 0.0
        self.seconds = 0.0  # in which something was compiled

    def __enter__(self) -> "Compiling":
        _watchers.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _watchers.remove(self)

    def take_seconds(self) -> float:
        """Seconds in which something was compiled, since the last time."""
        with self._lock:
            seconds, self._taken = self.seconds - self._taken, self.seconds
            return seconds

    def begins(self, name: str) -> None:
        """A program goes to the compiler."""
        with self._lock:
            if not self._active:
                self._since = time.perf_counter()
            self._active += 1
            if not name.startswith(PROGRAMS):
                return
            words = name.replace("_", " ")
            if name in self._seen:
                line = f"compiling {words} for another shape"
            else:
                self._seen.add(name)
                most = max(self._programs, len(self._seen))
                line = f"compiling {len(self._seen)} of {most}: {words}"
            timer = threading.Timer(QUIET_SECONDS, self._say, [line])
            timer.daemon = True
            self._pending[name] = timer
            timer.start()

    def ends(self, name: str) -> None:
        """It is compiled."""
        with self._lock:
            self._active = max(0, self._active - 1)
            if not self._active:
                self.seconds += time.perf_counter() - self._since
            timer = self._pending.pop(name, None)
        if timer is not None:
            timer.cancel()


_watchers: list[Compiling] = []


def _heard(event: str, duration_secs: float, **kwargs: str | int) -> None:
    del duration_secs  # of one of several side by side
    name = str(kwargs.get("fun_name", "")).removeprefix("jit(").removesuffix(")")
    for watcher in _watchers:
        if event == _BEGINS:
            watcher.begins(name)
        elif event == _ENDS:
            watcher.ends(name)


monitoring.register_event_duration_secs_listener(_heard)
