"""Worker processes behind a pool: who is alive, who hangs, who is replaced.

Slot s lives in worker s mod N. Every worker has a thread here that sends it one batch of calls at a
time and waits for the answer, so nothing ever blocks the main thread, and a worker that is killed,
crashes or hangs is an event like an answer.
"""

import contextlib
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple

from atod_jax.envs.base import TextEnv
from atod_jax.envs.worker import Answer, Call, Status, send_files

START_SECONDS = 900.0  # for the nursery to import and load: a full catalogue takes minutes
IDLE_DEATHS = 10  # of workers in a row, without an answer from any: something else is wrong


class BrokenWorkers(Exception):
    """Workers die again and again without playing anything."""


class Answered(NamedTuple):
    """A worker's answers to one batch."""

    ticket: int
    answers: list[tuple[int, Answer]]


class Lost(NamedTuple):
    """A worker is gone, and the state of its slots with it."""

    worker: int
    ticket: int  # of the batch it was busy with
    slot: int  # that it was playing; -1: none
    reason: str
    timed_out: bool


class Processes:
    """N workers of one kind of environment; `limit` is the seconds one call may take."""

    def __init__(self, make: Callable[[], TextEnv], count: int, limit: float):
        self._make, self._count, self._limit = make, count, limit
        self._events: queue.SimpleQueue = queue.SimpleQueue()
        self._idle_deaths = 0
        self._nursery = _Nursery(make)
        self._lines = [self._hire(k) for k in range(count)]

    def send(self, ticket: int, calls: Sequence[Call]) -> None:
        """Hands every call to the worker of its slot."""
        for number, line in enumerate(self._lines):
            own = [call for call in calls if call.slot % self._count == number]
            if own:
                line.inbox.put((ticket, own))

    def receive(self) -> Answered | Lost:
        """The next thing that happens; a worker over its time is killed and reported.

        Raises:
          BrokenWorkers: they die again and again without playing anything.
        """
        while True:
            try:
                line, what = self._events.get(timeout=self._patience())
            except queue.Empty:
                for line in self._lines:
                    line.stop_if_late(self._limit)
                continue
            if line is not self._lines[line.number]:
                continue  # a replaced worker's last words
            if isinstance(what, Answered):
                self._idle_deaths = 0
                return what
            return self._replace(line, what)

    def slots_of(self, worker: int, slots: int) -> range:
        """The slots, of so many in all, that live in a worker."""
        return range(worker, slots, self._count)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers at present."""
        return [line.pid for line in self._lines]

    def close(self) -> None:
        """Ends all processes; safe to call twice."""
        for line in self._lines:
            line.dismiss()
        self._lines = []
        self._nursery.close()

    def _patience(self) -> float:
        ends = [line.since() + self._limit for line in self._lines if line.busy]
        return min(1.0, max(0.0, min(ends, default=0.0) - time.monotonic()) + 0.001)

    def _replace(self, line: "_Line", lost: Lost) -> Lost:
        self._idle_deaths += lost.slot < 0
        if self._idle_deaths > IDLE_DEATHS:
            raise BrokenWorkers(
                f"environment workers died {self._idle_deaths} times in a row without playing "
                "(out of memory?); lower env.workers, or set env.workers=0 to see the error"
            )
        line.dismiss()
        self._lines[line.number] = self._hire(line.number)
        return lost

    def _hire(self, number: int) -> "_Line":
        try:
            return self._fork(number)
        except (EOFError, OSError):  # the nursery is gone too
            self._nursery.close()
            self._nursery = _Nursery(self._make)
            return self._fork(number)

    def _fork(self, number: int) -> "_Line":
        ours, theirs = socket.socketpair()
        with tempfile.TemporaryFile() as file, ours, theirs:
            pid = self._nursery.fork(theirs.fileno(), file.fileno())
            connection = Connection(os.dup(ours.fileno()))
            return _Line(number, pid, connection, Status(file.fileno()), self._events)


class _Line:
    """The main process's end of one worker."""

    def __init__(
        self,
        number: int,
        pid: int,
        connection: Connection,
        status: Status,
        events: queue.SimpleQueue,
    ):
        self.number, self.pid = number, pid
        self.inbox: queue.SimpleQueue = queue.SimpleQueue()
        self.busy, self._sent, self._late, self._ticket = False, 0.0, False, 0
        self._connection, self._status, self._events = connection, status, events
        threading.Thread(target=self._talk, daemon=True).start()

    def _talk(self) -> None:
        try:
            for message in iter(self.inbox.get, None):
                self._ticket, self._sent, self.busy = message[0], time.monotonic(), True
                self._connection.send(message)
                self._events.put((self, Answered(*self._connection.recv())))
                self.busy = self.inbox.qsize() > 0
        except Exception as error:
            self._events.put((self, self._lost(error)))

    def _lost(self, error: Exception) -> Lost:
        _, slot = self._status.read()
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, EOFError | OSError):
            reason = "no answer in time" if self._late else "its worker process died"
        return Lost(self.number, self._ticket, slot, reason, self._late)

    def since(self) -> float:
        """When the call that is under way began, or was sent."""
        return max(self._sent, self._status.read()[0])

    def stop_if_late(self, limit: float) -> None:
        """Kills the worker if its call takes longer than `limit` seconds."""
        if self.busy and time.monotonic() > self.since() + limit:
            self._late = True
            self._kill()

    def dismiss(self) -> None:
        """Ends the worker and the thread."""
        self.inbox.put(None)
        self._kill()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


class _Nursery:
    """The process that loads once and forks workers.

    Raises:
      ValueError: it cannot make an environment; says why.
    """

    def __init__(self, make: Callable[[], TextEnv]):
        self._control, theirs = socket.socketpair()
        # One thread per worker; and a fork of a process with threads would be a gamble.
        quiet = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "atod_jax.envs.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=os.environ | quiet | path,
            )
        self._replies = Connection(os.dup(self._control.fileno()))
        self._replies.send_bytes(pickle.dumps(make))
        if problem := self._first_words():
            self.close()
            raise ValueError(f"the environment cannot be started: {problem}")

    def _first_words(self) -> str:
        if not self._replies.poll(START_SECONDS):
            return f"no sign of life within {START_SECONDS:.0f} s"
        try:
            return self._replies.recv()
        except EOFError:
            return "its process died"

    def fork(self, *files: int) -> int:
        """A new worker at the other end of these files; its process id."""
        send_files(self._control, *files)
        return self._replies.recv()

    def close(self) -> None:
        """Ends the process; workers live on until their line is closed."""
        self._control.close()
        self._replies.close()
        self._process.kill()
        self._process.wait()
