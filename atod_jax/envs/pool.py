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
from typing import Any

from atod_jax.envs.base import Observation, StepResult, TextEnv
from atod_jax.envs.processes import Answered, Lost, Processes
from atod_jax.envs.worker import Answer, Call, Player, Raised
from atod_jax.options.field import above, at_least, check, option
from atod_jax.records import Task
from atod_jax.texts import one_line


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
    """The same functions as `Processes`, in this process and without a time limit."""

    def __init__(self, make: Callable[[], TextEnv]):
        self._player = Player(make)
        self._events: collections.deque[Answered] = collections.deque()
        self.pids: list[int] = []

    def send(self, ticket: int, calls: Sequence[Call]) -> None:
        """Plays the calls."""
        answers = [(call.slot, self._player.play(call)) for call in calls]
        self._events.append(Answered(ticket, answers))

    def receive(self, *, wait: bool) -> Answered | Lost | None:
        """The answers of the oldest batch; None: there are none."""
        return self._events.popleft() if self._events else None

    def slots_of(self, worker: int, slots: int) -> range:
        """All of them."""
        return range(slots)

    def close(self) -> None:
        """Ends every environment."""
        self._player.close()


class EnvPool:
    """As many environments as slots are used; made when first needed, and used again.

    A slot is asked one thing at a time. With workers, slots answer in any order (`start`, `submit`,
    `poll`), while the caller does something else.
    """

    def __init__(self, make: Callable[[], TextEnv], cfg: PoolConfig = PoolConfig()):
        self._make, self._cfg = make, cfg
        self._players: InProcess | Processes | None = None
        self._episodes: dict[int, _Episode] = {}  # by slot
        self._ticket = 0  # of everything asked since the last `clear`
        self._waiting: set[int] = set()  # slots without an answer
        self._answered: list[int] = []  # slots with an answer that nobody has taken
        self._counts: dict[str, float] = collections.defaultdict(float)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers at present; none in this process or before the first start."""
        return self._players.pids if self._players else []

    def reset(self, tasks: Sequence[Task]) -> list[Observation | Failure]:
        """Starts one episode per task; slot i plays tasks[i]. What was under way is abandoned."""
        self.clear()
        self.start(list(enumerate(tasks)))
        return self._all(range(len(tasks)))

    def step(self, commands: Sequence[tuple[int, str]]) -> list[StepResult | Failure]:
        """Plays (slot, command) pairs; results in the same order."""
        self.submit(commands)
        return self._all([slot for slot, _ in commands])

    def clear(self) -> None:
        """Abandons everything that is under way."""
        self._ticket += 1
        self._episodes, self._waiting, self._answered = {}, set(), []

    def start(self, tasks: Sequence[tuple[int, Task]]) -> None:
        """Begins an episode in every (slot, task), in place of the one before."""
        self._episodes |= {slot: _Episode(task) for slot, task in tasks}
        self._ask([slot for slot, _ in tasks])

    def submit(self, commands: Sequence[tuple[int, str]]) -> None:
        """Sends (slot, command) pairs off."""
        for slot, command in commands:
            self._episodes[slot].commands.append(command)
        self._counts["steps"] += len(commands)
        self._ask([slot for slot, _ in commands])

    def poll(self, *, wait: bool = False) -> list[tuple[int, Any]]:
        """What has been answered since the last time: (slot, an Observation where an episode was
        started, a StepResult where a command was sent, a Failure in place of either).

        Args:
          wait: for at least one answer, if something is under way.
        """
        began = time.perf_counter()
        while self._waiting:
            event = self._started().receive(wait=wait and not self._answered)
            if event is None:
                break
            self._take(event)
        self._counts["waited"] += time.perf_counter() - began
        slots, self._answered = sorted(self._answered), []
        return [(slot, self._answer(slot)) for slot in slots]

    @property
    def under_way(self) -> int:
        """Slots that have not answered yet."""
        return len(self._waiting)

    def _all(self, slots: Sequence[int]) -> list[Any]:
        """The answers of these slots; waits for them."""
        began = time.perf_counter()
        while not self._waiting.isdisjoint(slots):
            if event := self._started().receive(wait=True):
                self._take(event)
        self._counts["waited"] += time.perf_counter() - began
        self._answered = [slot for slot in self._answered if slot not in slots]
        return [self._answer(slot) for slot in slots]

    def _answer(self, slot: int) -> Any:
        episode = self._episodes[slot]
        return episode.given_up or episode.answers[-1]

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

    def _ask(self, slots: Sequence[int]) -> None:
        self._waiting |= set(slots)
        self._send(slots)

    def _send(self, slots: Sequence[int]) -> None:
        calls = [self._episodes[slot].call(slot) for slot in slots]
        for slot in slots:
            self._episodes[slot].lost = False
        began = time.perf_counter()
        self._started().send(self._ticket, calls)
        self._counts["waited"] += time.perf_counter() - began

    def _take(self, event: Answered | Lost) -> None:
        if isinstance(event, Lost):
            self._recover(event)
        elif event.ticket == self._ticket:  # else: an answer to something abandoned
            for slot, answer in event.answers:
                self._book(slot, answer)

    def _book(self, slot: int, answer: Answer) -> None:
        episode = self._episodes[slot]
        if isinstance(answer, Raised):
            self._fail(slot, answer.reason)
        elif not _agree(episode.answers, answer, commands=len(episode.commands)):
            self._fail(slot, "played again, it answered something else: it is not deterministic")
        else:
            episode.answers.append(answer[-1])
            self._settle(slot)
            return
        self._ask_again([slot])

    def _recover(self, lost: Lost) -> None:
        """The slots of a lost worker start over, those without an answer at once."""
        self._counts["restarts"] += 1
        self._counts["timeouts"] += lost.timed_out
        last = max(self._episodes, default=-1)
        gone = set(self._started().slots_of(lost.worker, last + 1)) & set(self._episodes)
        for slot in gone:
            self._episodes[slot].lost = True
        if lost.ticket == self._ticket and lost.slot in self._waiting:
            self._fail(lost.slot, lost.reason)
        self._ask_again(sorted(self._waiting & gone))

    def _ask_again(self, slots: Sequence[int]) -> None:
        for slot in slots:
            if self._episodes[slot].given_up:
                self._settle(slot)
        if again := [slot for slot in slots if slot in self._waiting]:
            self._send(again)

    def _settle(self, slot: int) -> None:
        self._waiting.discard(slot)
        self._answered.append(slot)

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
            f"environment: gave up task {one_line(episode.task.id)} after {episode.failures} "
            f"failures; {one_line(episode.given_up.reason)}",
            file=sys.stderr,
            flush=True,
        )


def _agree(known: Sequence, answer: Sequence, *, commands: int) -> bool:
    """Whether a replay reproduced the answers recorded before the failure."""
    replayed = len(answer) == commands + 1 and commands > 0
    return not replayed or list(known) == list(answer[: len(known)])
