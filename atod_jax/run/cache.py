"""Compiled programs, kept on disk for the next start."""

import functools
import hashlib
import os
import platform
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax._src.compilation_cache import decompress_executable

CACHE = Path("~/.cache/atod_jax")
_lock = threading.Lock()
_mended: set[tuple[str, Path]] = set()  # what has been done: once is enough


def use_cache(folder: str | None) -> None:
    """Keeps compiled programs in `folder`; "" keeps none.

    None: where the environment says (JAX_COMPILATION_CACHE_DIR), else in CACHE. Programs of a CPU
    are code for its very instructions, so every kind of processor has a folder of its own.
    """
    named = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if folder == "":
        jax.config.update("jax_enable_compilation_cache", False)
    elif folder is None and named:
        _watch(Path(named))
    else:
        try:
            place = Path(CACHE if folder is None else folder).expanduser() / _processor()
            place.mkdir(parents=True, exist_ok=True)
        except (OSError, RuntimeError) as error:  # RuntimeError: whoever runs this has no home
            _do_without(error)
            return
        jax.config.update("jax_compilation_cache_dir", str(place))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        _watch(place)


def _do_without(reason: object) -> None:
    print(f"no cache of compiled programs: {reason}", file=sys.stderr, flush=True)


def _watch(place: Path) -> None:
    """Mends what JAX warns of: programs that cannot be read are removed, so that they are kept anew
    when they are compiled; where nothing can be written, nothing more is tried."""
    show = warnings.showwarning
    if isinstance(show, functools.partial) and show.func is _hear:  # of another place
        show = show.args[1]
    warnings.showwarning = functools.partial(_hear, place, show)


def _hear(place: Path, show: Callable[..., None], /, *warning: Any, **more: Any) -> None:
    message = more.get("message", *warning[:1])
    kind, _, reason = str(message).partition(" persistent compilation cache entry for ")
    if not reason:
        show(*warning, **more)
        return
    with _lock:
        if (kind, place) not in _mended:
            _mended.add((kind, place))
            _mend(place, kind, reason.rpartition(": ")[2])


def _mend(place: Path, kind: str, reason: str) -> None:
    if kind == "Error reading":
        damaged = [entry for entry in place.glob("*-cache") if not _is_whole(entry)]
        for entry in damaged:
            entry.unlink(missing_ok=True)
        if damaged:
            print(
                f"{place}: {len(damaged)} damaged programs removed; they are compiled again",
                file=sys.stderr,
                flush=True,
            )
    else:
        jax.config.update("jax_enable_compilation_cache", False)
        _do_without(f"{reason} ({place})")


def _is_whole(entry: Path) -> bool:
    try:
        return len(decompress_executable(entry.read_bytes())) > 0
    except Exception:  # of whichever library unpacks it
        return False


def _processor() -> str:
    """A name for the kind of processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else [platform.processor()]
    kind = next((line for line in lines if line.startswith(("flags", "Features"))), lines[0])
    return f"{platform.machine()}-{hashlib.sha256(kind.encode()).hexdigest()[:8]}"
