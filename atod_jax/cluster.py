"""Several processes as one run: who is first, and how host objects get from one to all.

Every process runs the same program. Device arrays span all of them by themselves; what the host
knows (episodes, a stop request, a file that is there) has to be told, and everybody has to ask at
the same place, or the others wait. With one process all of this costs nothing.
"""

import contextlib
import functools
import os
import pickle
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")
HEARTBEAT_SECONDS = 30  # a process that is silent for so long is taken for dead
SHUTDOWN_SECONDS = 30


def start(
    *, coordinator: str = "", num_processes: int = 0, process_id: int = -1, detect: bool = False
) -> None:
    """Joins the processes of a run; must come before anything else touches a device.

    Args:
      coordinator: HOST:PORT of process 0; with `num_processes` and `process_id`, or not at all.
      detect: finds these three out itself (TPU pods, GKE, Slurm).

    Raises:
      ValueError: some of the three are given and others not.
    """
    given = (bool(coordinator), num_processes > 0, process_id >= 0)
    if any(given) and not all(given):
        raise ValueError(
            f"--coordinator={coordinator!r} --num_processes={num_processes} "
            f"--process_id={process_id}: give all three, or --distributed to find them out"
        )
    join = functools.partial(
        jax.distributed.initialize,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=SHUTDOWN_SECONDS,
    )
    if coordinator:
        join(coordinator, num_processes, process_id)
    elif detect:
        join()


def is_first() -> bool:
    """Whether this process is the one that writes and talks."""
    return jax.process_index() == 0


def warn(text: str) -> None:
    """One line on stderr, of the process that talks."""
    if is_first():
        print(f"warning: {text}", file=sys.stderr, flush=True)


def count() -> int:
    """How many processes there are."""
    return jax.process_count()


def share_of(count: int) -> slice:
    """This process's contiguous share of `count` things; shares differ by one at most."""
    bounds = np.linspace(0, count, jax.process_count() + 1).astype(int)
    return slice(int(bounds[jax.process_index()]), int(bounds[jax.process_index() + 1]))


def gather(items: Sequence[T]) -> list[T]:
    """The items of all processes, in the order of the processes."""
    if jax.process_count() == 1:
        return list(items)
    data = np.frombuffer(pickle.dumps(list(items)), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([len(data)]))[:, 0]
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    lists = (pickle.loads(row[:n].tobytes()) for row, n in zip(rows, sizes, strict=True))
    return [item for items in lists for item in items]


def first_says(value: Any) -> Any:
    """The value of the first process."""
    return gather([value])[0]


@contextlib.contextmanager
def leaving_together() -> Iterator[None]:
    """Turns the loss of another process into one clear line instead of a long wait.

    An error of the runtime in one of several processes nearly always means that another has gone.
    The process ends at once: an orderly shutdown would wait for the others. A process that vanishes
    without closing its connections is noticed after HEARTBEAT_SECONDS, by JAX itself.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # Gloo's errors are ValueErrors
        ours = isinstance(error, ValueError) and "Gloo" not in str(error)
        if ours or jax.process_count() == 1:
            raise
        print(
            f"error: process {jax.process_index()} of {jax.process_count()} lost the others: "
            f"{str(error).splitlines()[0][:300]}\nStart the same command again in all processes; "
            "the run goes on from its last checkpoint.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(3)
