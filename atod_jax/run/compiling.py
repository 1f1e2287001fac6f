"""Compiling: a cache on disk, programs side by side, a line that says what takes so long."""

import hashlib
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
from jax import monitoring
from jax.stages import Lowered

CACHE = Path("~/.cache/atod_jax")
PROGRAMS = ("prefill", "fill", "decode", "score", "signal", "gradient", "step")
QUIET_SECONDS = 1.0  # a program that takes no longer is not worth a line
_BEGINS = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_ENDS = "/jax/core/compile/backend_compile_duration"


def use_cache(folder: str) -> None:
    """Keeps compiled programs in `folder`, for the next start; "" keeps none.

    A folder that the environment names (JAX_COMPILATION_CACHE_DIR) stays. Programs of a CPU are
    code for its very instructions, so every kind of processor has a folder of its own.
    """
    if folder and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        try:
            place = Path(folder).expanduser() / _processor()
            place.mkdir(parents=True, exist_ok=True)
        except (OSError, RuntimeError) as error:  # RuntimeError: whoever runs this has no home
            print(f"no cache of compiled programs: {error}", file=sys.stderr)
            return
        jax.config.update("jax_compilation_cache_dir", str(place))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _processor() -> str:
    """A name for the kind of processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else [platform.processor()]
    kind = next((line for line in lines if line.startswith(("flags", "Features"))), lines[0])
    return f"{platform.machine()}-{hashlib.sha256(kind.encode()).hexdigest()[:8]}"


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
        self._seen: dict[str, int] = {}
        self._pending: dict[str, threading.Timer] = {}
        self._active, self._since, self._seconds = 0, 0.0, 0.0

    def __enter__(self) -> "Compiling":
        _watchers.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _watchers.remove(self)

    def take_seconds(self) -> float:
        """Seconds in which something was compiled, since the last time."""
        with self._lock:
            seconds, self._seconds = self._seconds, 0.0
            return seconds

    def begins(self, name: str) -> None:
        """A program goes to the compiler."""
        with self._lock:
            if not self._active:
                self._since = time.perf_counter()
            self._active += 1
            if not name.startswith(PROGRAMS):
                return
            again = name in self._seen
            number = self._seen.setdefault(name, len(self._seen) + 1)
            words = name.replace("_", " ")
            most = max(self._programs, number)
            line = f"compiling {number} of {most}: {words}{', another shape' if again else ''}"
            timer = threading.Timer(QUIET_SECONDS, self._say, [line])
            timer.daemon = True
            self._pending[name] = timer
            timer.start()

    def ends(self, name: str) -> None:
        """It is compiled."""
        with self._lock:
            self._active = max(0, self._active - 1)
            if not self._active:
                self._seconds += time.perf_counter() - self._since
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
