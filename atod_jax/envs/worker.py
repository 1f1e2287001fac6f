"""What runs beside the main process: a fork server, which imports and loads once, and its workers.

    python -m atod_jax.envs.worker FD      (started by `processes.Processes`, never by hand)

A worker shares every page that the fork server has loaded (imports, catalogues, indices), starts in
milliseconds and does not import the program that uses it, so no model or device is ever copied.
"""

import contextlib
import mmap
import os
import pickle
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import NamedTuple

from atod_jax.envs.base import Observation, StepResult, TextEnv
from atod_jax.records import Task


class Call(NamedTuple):
    """Play `commands` in a slot; with a task the slot starts it first."""

    slot: int
    task: Task | None
    commands: tuple[str, ...]


class Raised(NamedTuple):
    """A call ended in an exception; the slot's environment is gone."""

    reason: str


Answer = list[Observation | StepResult] | Raised  # of each reset or step of the call, in order
Note = Callable[[int], None]  # told the slot before every call into an environment, -1 after


class Player:
    """The environments of one process, one per slot, made when first needed."""

    def __init__(self, make: Callable[[], TextEnv], note: Note = lambda slot: None):
        self._make, self._note = make, note
        self._envs: dict[int, TextEnv] = {}

    def play(self, call: Call) -> Answer:
        """Resets if there is a task, then plays the commands."""
        try:
            return list(self._results(call))
        except Exception as error:
            with contextlib.suppress(Exception):
                self._envs.pop(call.slot).close()
            return Raised(f"{type(error).__name__}: {error}")
        finally:
            self._note(-1)

    def _results(self, call: Call):
        self._note(call.slot)
        if call.slot not in self._envs:
            self._envs[call.slot] = self._make()
        env = self._envs[call.slot]
        if call.task is not None:
            yield env.reset(call.task)
        for command in call.commands:
            self._note(call.slot)
            yield env.step(command)

    def close(self) -> None:
        """Ends every environment."""
        for env in self._envs.values():
            env.close()
        self._envs = {}


class Status:
    """Which slot a worker is busy with and since when, in memory that outlives the worker."""

    _FORM = struct.Struct("=dq")

    def __init__(self, file: int):
        os.truncate(file, self._FORM.size)
        self._memory = mmap.mmap(file, self._FORM.size)
        self.note(-1)

    def note(self, slot: int) -> None:
        """A call into the environment of `slot` begins; -1: it has ended."""
        self._memory[:] = self._FORM.pack(time.monotonic(), slot)

    def read(self) -> tuple[float, int]:
        """(`time.monotonic()` of the last note, its slot)."""
        since, slot = self._FORM.unpack(self._memory[:])
        return since, slot


def serve(connection: Connection, make: Callable[[], TextEnv], *, status: Status) -> None:
    """The loop of a worker: answers batches of calls until the main process is gone."""
    player = Player(make, status.note)
    with contextlib.suppress(EOFError, OSError):
        while True:
            ticket, calls = connection.recv()
            connection.send((ticket, [(call.slot, player.play(call)) for call in calls]))


def fork_server(control: socket.socket) -> None:
    """Loads what `make` needs, then forks one worker per pair of file descriptors received.

    Answers "" (or the reason why it cannot) once, then the process id of every worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's business
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for workers
    connection = Connection(os.dup(control.fileno()))
    try:
        make = pickle.loads(connection.recv_bytes())
        make().close()
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")
        return
    connection.send("")
    while files := socket.recv_fds(control, 1, 2)[1]:  # none: the main process is gone
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # an environment may have children
            control.close()
            connection.close()
            serve(Connection(files[0]), make, status=Status(files[1]))
            os._exit(0)
        for file in files:
            os.close(file)
        connection.send(pid)


if __name__ == "__main__":
    from atod_jax.envs import worker  # by its own name, so that what it sends can be read

    worker.fork_server(socket.socket(fileno=int(sys.argv[1])))
