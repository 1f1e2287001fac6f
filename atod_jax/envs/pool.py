"""The environments of one process, stepped together, in this process or in worker processes.

An episode is a task and the commands played so far. Whatever happens to the environment that plays
it (an exception, a crash, a hang) it is started again from there, and only when that fails several
times is the episode given up: as a `Failure` that names the task, never as an answer.
"""

import collections
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence

from atod_jax.envs.base import Observation, StepResult, TextEnv
from atod_jax.envs.processes import Answered, Lost, Processes
from atod_jax.envs.worker import Answer, Call, Player, Raised
from atod_jax.options.field import above, at_least, check, option
from atod_jax.records import Task


class BrokenEnvironment(Exception):
    """Too many episodes failed; continuing would train on a biased remainder."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """An episode that cannot be played."""

    task_id: str
    reason: str


@dataclasses.dataclass(frozen=True)
class PoolConfig:
    """Where environments run and how many failures are tolerated."""

    workers: int = option(
        0,
        "worker processes; 0: in this process, right for engines that take microseconds a step",
        at_least(0),
        pins=False,
    )
    timeout: float = option(
        60.0, "seconds that a call into an environment may take in a worker", above(0), pins=False
    )
    attempts: int = option(3, "failures after which an episode is given up", at_least(1))

    def __post_init__(self):
        check(self)


@dataclasses.dataclass
class _Episode:
    """What is needed to play a slot again."""

    task: Task
    commands: list[str] = dataclasses.field(default_factory=list)
    answers: list[Observation | StepResult] = dataclasses.field(default_factory=list)
    lost: bool = True  # its environment is not there (any more)
    failures: int = 0
    given_up: Failure | None = None

    def call(self, slot: int) -> Call:
        """What has to be played for the answers to be complete."""
        if self.lost:
            return Call(slot, self.task, tuple(self.commands))
        return Call(slot, None, tuple(self.commands[-1:]))


class InProcess:
    """The same two functions as `Processes`, in this process and without a time limit."""

    def __init__(self, make: Callable[[], TextEnv]):
        self._player = Player(make)
        self._events: collections.deque[Answered] = collections.deque()
        self.pids: list[int] = []

    def send(self, ticket: int, calls: Sequence[Call]) -> None:
        """Plays the calls."""
        answers = [(call.slot, self._player.play(call)) for call in calls]
        self._events.append(Answered(ticket, answers))

    def receive(self) -> Answered | Lost:
        """The answers of the oldest batch."""
        return self._events.popleft()

    def slots_of(self, worker: int, slots: int) -> range:
        """All of them."""
        return range(slots)

    def close(self) -> None:
        """Ends every environment."""
        self._player.close()


class EnvPool:
    """As many environments as there are slots; made when first needed, reset for every batch.

    With workers, two batches may be under way at once (`submit`, `results`): half of the slots step
    while the device samples for the other half.
    """

    def __init__(self, make: Callable[[], TextEnv], cfg: PoolConfig = PoolConfig()):
        self._make, self._cfg = make, cfg
        self._players: InProcess | Processes | None = None
        self._episodes: list[_Episode] = []
        self._tickets = 0
        self._waiting: dict[int, set[int]] = {}  # ticket -> slots without an answer
        self._order: dict[int, list[int]] = {}  # ticket -> its slots as they were asked for
        self._counts: dict[str, float] = collections.defaultdict(float)

    @property
    def overlaps(self) -> bool:
        """Whether environments step while the caller does something else."""
        return self._cfg.workers > 0

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers at present; none in this process or before the first reset."""
        return self._players.pids if self._players else []

    def reset(self, tasks: Sequence[Task]) -> list[Observation | Failure]:
        """Starts one episode per task; slot i plays tasks[i]. What was under way is abandoned."""
        self._waiting, self._order = {}, {}
        self._episodes = [_Episode(task) for task in tasks]
        return self.results(self._ask(range(len(tasks))))

    def step(self, commands: Sequence[tuple[int, str]]) -> list[StepResult | Failure]:
        """Plays (slot, command) pairs; results in the same order."""
        return self.results(self.submit(commands))

    def submit(self, commands: Sequence[tuple[int, str]]) -> int:
        """Sends (slot, command) pairs off; returns the ticket that `results` takes."""
        for slot, command in commands:
            self._episodes[slot].commands.append(command)
        self._counts["steps"] += len(commands)
        return self._ask([slot for slot, _ in commands])

    def results(self, ticket: int) -> list:
        """Waits for everything asked under a ticket, in the order in which it was asked."""
        began = time.perf_counter()
        while self._waiting[ticket]:
            self._take(self._started().receive())
        self._counts["waited"] += time.perf_counter() - began
        del self._waiting[ticket]
        episodes = [self._episodes[slot] for slot in self._order.pop(ticket)]
        return [e.given_up or e.answers[-1] for e in episodes]

    def take_counts(self) -> dict[str, float]:
        """Since the last time: steps, seconds waited, restarts, timeouts, episodes given up."""
        names = ("steps", "waited", "restarts", "timeouts", "given_up")
        counts = {name: self._counts[name] for name in names}
        self._counts.clear()
        return counts

    def close(self) -> None:
        """Ends every environment; safe to call twice."""
        if self._players:
            self._players.close()
        self._players = None

    def _started(self) -> InProcess | Processes:
        if self._players is None:
            cfg = self._cfg
            self._players = (
                Processes(self._make, count=cfg.workers, timeout=cfg.timeout)
                if cfg.workers
                else InProcess(self._make)
            )
        return self._players

    def _ask(self, slots: Sequence[int]) -> int:
        self._tickets += 1
        self._order[self._tickets] = list(slots)
        self._waiting[self._tickets] = set(slots)
        self._send(self._tickets, slots)
        return self._tickets

    def _send(self, ticket: int, slots: Sequence[int]) -> None:
        calls = [self._episodes[slot].call(slot) for slot in slots]
        for slot in slots:
            self._episodes[slot].lost = False
        began = time.perf_counter()
        self._started().send(ticket, calls)
        self._counts["waited"] += time.perf_counter() - began

    def _take(self, event: Answered | Lost) -> None:
        if isinstance(event, Lost):
            self._recover(event)
        elif event.ticket in self._waiting:  # else: an answer to something abandoned
            for slot, answer in event.answers:
                self._book(event.ticket, slot, answer)

    def _book(self, ticket: int, slot: int, answer: Answer) -> None:
        episode = self._episodes[slot]
        if isinstance(answer, Raised):
            self._fail(slot, answer.reason)
        elif not _agree(episode.answers, answer, commands=len(episode.commands)):
            self._fail(slot, "played again, it answered something else: it is not deterministic")
        else:
            episode.answers.append(answer[-1])
            self._waiting[ticket].discard(slot)
            return
        self._ask_again(ticket, [slot])

    def _recover(self, lost: Lost) -> None:
        """The slots of a lost worker start over, those without an answer at once."""
        self._counts["restarts"] += 1
        self._counts["timeouts"] += lost.timed_out
        gone = set(self._started().slots_of(lost.worker, len(self._episodes)))
        for slot in gone:
            self._episodes[slot].lost = True
        if lost.slot in self._waiting.get(lost.ticket, ()):
            self._fail(lost.slot, lost.reason)
        for ticket, waiting in self._waiting.items():
            self._ask_again(ticket, sorted(waiting & gone))

    def _ask_again(self, ticket: int, slots: Sequence[int]) -> None:
        given_up = [slot for slot in slots if self._episodes[slot].given_up]
        self._waiting[ticket].difference_update(given_up)
        if again := [slot for slot in slots if slot not in given_up]:
            self._send(ticket, again)

    def _fail(self, slot: int, reason: str) -> None:
        episode = self._episodes[slot]
        episode.lost = True
        episode.failures += 1
        if episode.failures < self._cfg.attempts:
            return
        what = f"step({episode.commands[-1][:80]!r})" if episode.commands else "reset"
        episode.given_up = Failure(episode.task.id, f"{what}: {reason}")
        self._counts["given_up"] += 1
        print(
            f"environment: gave up task {episode.task.id} after {episode.failures} failures; "
            f"{episode.given_up.reason}",
            file=sys.stderr,
            flush=True,
        )


def _agree(known: Sequence, answer: Sequence, *, commands: int) -> bool:
    """Whether a replay reproduced the answers recorded before the failure."""
    replayed = len(answer) == commands + 1 and commands > 0
    return not replayed or list(known) == list(answer[: len(known)])
