"""Worker processes behind a pool: starts them, watches them, replaces those that die or hang.

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
from atod_jax.envs.worker import Answer, Call, Status

START_TIMEOUT = (
    900.0  # seconds in which the fork server imports and loads; a full catalogue is slow
)
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
    """`count` workers of one kind of environment; a call may take `timeout` seconds."""

    def __init__(self, make: Callable[[], TextEnv], *, count: int, timeout: float):
        self._make, self._count, self._timeout = make, count, timeout
        self._events: queue.SimpleQueue = queue.SimpleQueue()
        self._idle_deaths = 0
        self._fork_server = _ForkServer(make)
        self._workers = [self._start(number) for number in range(count)]

    def send(self, ticket: int, calls: Sequence[Call]) -> None:
        """Hands every call to the worker of its slot."""
        for number, worker in enumerate(self._workers):
            own = [call for call in calls if call.slot % self._count == number]
            if own:
                worker.inbox.put((ticket, own))

    def receive(self, *, wait: bool) -> Answered | Lost | None:
        """The next event; a worker whose call takes too long is killed and reported.

        Args:
          wait: for it; else None where there is none yet.

        Raises:
          BrokenWorkers: they die again and again without playing anything.
        """
        while True:
            try:
                worker, event = self._events.get(wait, self._until_next_deadline())
            except queue.Empty:
                for worker in self._workers:
                    worker.kill_if_overdue(self._timeout)
                if wait:
                    continue
                return None
            if worker is not self._workers[worker.number]:
                continue  # it comes from a worker that has been replaced
            if isinstance(event, Answered):
                self._idle_deaths = 0
                return event
            return self._replace(worker, event)

    def slots_of(self, worker: int, slots: int) -> range:
        """The slots, of so many in all, that live in a worker."""
        return range(worker, slots, self._count)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers at present."""
        return [worker.pid for worker in self._workers]

    def close(self) -> None:
        """Ends all processes; safe to call twice."""
        for worker in self._workers:
            worker.stop()
        self._workers = []
        self._fork_server.close()

    def _until_next_deadline(self) -> float:
        """Seconds to wait for an event before looking for calls that take too long."""
        ends = [worker.since() + self._timeout for worker in self._workers if worker.busy]
        return min(1.0, max(0.0, min(ends, default=0.0) - time.monotonic()) + 0.001)

    def _replace(self, worker: "_Worker", lost: Lost) -> Lost:
        self._idle_deaths += lost.slot < 0
        if self._idle_deaths > IDLE_DEATHS:
            raise BrokenWorkers(
                f"environment workers died {self._idle_deaths} times in a row without playing "
                "(out of memory?); lower env.workers, or set env.workers=0 to see the error"
            )
        worker.stop()
        self._workers[worker.number] = self._start(worker.number)
        return lost

    def _start(self, number: int) -> "_Worker":
        try:
            return self._fork(number)
        except (EOFError, OSError):  # the fork server is gone too
            self._fork_server.close()
            self._fork_server = _ForkServer(self._make)
            return self._fork(number)

    def _fork(self, number: int) -> "_Worker":
        ours, theirs = socket.socketpair()
        with tempfile.TemporaryFile() as file, ours, theirs:
            pid = self._fork_server.fork(theirs.fileno(), file.fileno())
            connection = Connection(os.dup(ours.fileno()))
            status = Status(file.fileno())
            return _Worker(number, pid, connection=connection, status=status, events=self._events)


class _Worker:
    """The main process's handle of one worker."""

    def __init__(
        self,
        number: int,
        pid: int,
        *,
        connection: Connection,
        status: Status,
        events: queue.SimpleQueue,
    ):
        self.number, self.pid = number, pid
        self.inbox: queue.SimpleQueue = queue.SimpleQueue()
        self.busy, self._sent, self._overdue, self._ticket = False, 0.0, False, 0
        self._connection, self._status, self._events = connection, status, events
        threading.Thread(target=self._exchange, daemon=True).start()

    def _exchange(self) -> None:
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
            reason = "no answer in time" if self._overdue else "its worker process died"
        return Lost(self.number, self._ticket, slot, reason, self._overdue)

    def since(self) -> float:
        """When the call that is under way began, or was sent."""
        return max(self._sent, self._status.read()[0])

    def kill_if_overdue(self, timeout: float) -> None:
        """Kills the worker if its call takes longer than `timeout` seconds."""
        if self.busy and time.monotonic() > self.since() + timeout:
            self._overdue = True
            self._kill()

    def stop(self) -> None:
        """Ends the worker and the thread."""
        self.inbox.put(None)
        self._kill()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


class _ForkServer:
    """The process that loads once and forks workers; see `worker.fork_server`.

    Raises:
      ValueError: it cannot make an environment; says why.
    """

    def __init__(self, make: Callable[[], TextEnv]):
        try:
            made = pickle.dumps(make)
        except Exception as error:  # a lambda of a plug-in, an open file in its options
            raise ValueError(
                f"the environment cannot be sent to a worker process ({error}); make it with a "
                "function of a module, or set env.workers=0"
            ) from error
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "atod_jax.envs.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=os.environ | _environment_variables(),
            )
        self._replies = Connection(os.dup(self._control.fileno()))
        self._replies.send_bytes(made)
        if problem := self._start_problem():
            self.close()
            raise ValueError(f"the environment cannot be started: {problem}")

    def _start_problem(self) -> str:
        """Why it did not start, "" where it did."""
        if not self._replies.poll(START_TIMEOUT):
            return f"no sign of life within {START_TIMEOUT:.0f} s"
        try:
            return self._replies.recv()
        except EOFError:
            return "its process died"

    def fork(self, *files: int) -> int:
        """A new worker at the other end of these files; its process id."""
        socket.send_fds(self._control, [b"w"], files)
        return self._replies.recv()

    def close(self) -> None:
        """Ends the process; workers live on until they are stopped."""
        self._control.close()
        self._replies.close()
        self._process.kill()
        self._process.wait()


def _environment_variables() -> dict[str, str]:
    """What the fork server needs to import the same modules as this process, with one thread.

    A user's own environment may be found through the current directory alone, which is "" in
    `sys.path`. Threads would be one more set per worker, and forking a process that has threads is
    not safe.
    """
    return {
        "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
