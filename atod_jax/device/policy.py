"""The host's side of sampling: prompts of any length in, few compiled shapes, actions out.

A `Policy` is what is compiled, a `Sampler` one playing with it. The sampler keeps its slots busy:
whoever has a prompt submits it, and every call of `advance` fills free slots, writes a chunk of
every action and gives back those that have ended. When few episodes are left, the slots are moved
into a smaller cache.
"""

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array

from atod_jax.device.sampling import SamplingConfig
from atod_jax.device.slots import Entry, Programs, Slots, programs
from atod_jax.models import LanguageModel
from atod_jax.records import Action, Request
from atod_jax.sharding import local_shards, to_global, to_host, to_local

ROW_UNIT = 8  # the smallest number of slots
PREFILL_TOKENS = 2048  # read by a device at a time, so that its products are large enough
PART_TOKENS = 128  # a line has room for one prompt per so many columns
ENTRIES = 16  # slots of a device that are filled at a time


@dataclasses.dataclass
class Counts:
    """What sampling took."""

    steps: int = 0  # slots times steps, whether a token was written or not
    kept: int = 0  # of these, tokens of actions


class Policy:
    """A model that writes actions: compiled once, whatever it plays."""

    def __init__(self, model: LanguageModel, cfg: SamplingConfig, mesh: Mesh | None = None):
        self.model, self.cfg, self.mesh = model, cfg, mesh
        self.programs: Programs = programs(model, cfg.program, mesh)
        self.shards = local_shards(mesh) if mesh else 1
        self.counts = Counts()
        devices = mesh.devices.flat if mesh else jax.devices()
        # A CPU reads every prompt on a line of its own: nothing is gained by long lines there, and
        # few prompts are few lines. Elsewhere lines are packed, and always equally many.
        self.packs = devices[0].platform != "cpu"

    def sampler(self, weights: Any, key: Array) -> "Sampler":
        """One playing: with these weights (of `serve`), drawing from this key."""
        return Sampler(self, weights, key)

    def take_counts(self) -> Counts:
        """Since the last time."""
        counts, self.counts = self.counts, Counts()
        return counts

    def columns(self, tokens: int) -> int:
        """The prompt bucket."""
        return next(b for b in self.cfg.prompt_buckets if b >= tokens)

    def rows(self, count: int) -> int:
        """How many slots there are for so many actions at a time."""
        unit = math.lcm(ROW_UNIT, self.shards)
        return row_bucket(min(count, self.cfg.slots), unit=unit, most=self.cfg.slots)


def row_bucket(rows: int, *, unit: int, most: int) -> int:
    """The smallest of 0, unit, 4 unit, 16 unit, ..., and `most` (rounded up to units) that fits:
    a padded row costs little, a compiled shape seconds."""
    if rows == 0:
        return 0
    power = unit * 4 ** max(0, math.ceil(math.log2(rows / unit) / 2))
    return min(power, -(-most // unit) * unit)


class _Draft(NamedTuple):
    """An action that is being written."""

    row: int
    tokens: list[np.ndarray]
    logp: list[np.ndarray]


class _Line(NamedTuple):
    """Prompts that are read one after another, and the slots of each."""

    prompts: list[np.ndarray]
    slots: list[list[tuple[int, Request]]]


class Sampler:
    """The slots of one process, filled again and again.

    With several processes every one of them calls `advance` equally often, until it returns None
    in all of them; rows are unique among all.
    """

    def __init__(self, policy: Policy, weights: Any, key: Array):
        self._policy, self._weights = policy, weights
        # keys are made where the student trains, which may be on other devices
        self._key = to_host(jax.random.key_data(key))
        self._waiting: list[Request] = []
        self._slots: Slots | None = None
        self._columns = 0  # of prompts, that the slots have
        self._drafts: list[_Draft | None] = []  # per slot

    @property
    def slots(self) -> int:
        """Actions that are written side by side, at most."""
        return self._policy.cfg.slots

    def submit(self, requests: Sequence[Request]) -> None:
        """Prompts that want an action.

        Raises:
          ValueError: a prompt is empty or longer than the largest bucket.
        """
        buckets = self._policy.cfg.prompt_buckets
        longest = max((len(r.prompt) for r in requests), default=0)
        if any(len(r.prompt) == 0 for r in requests):
            raise ValueError("an empty prompt: there is nothing to predict the first token from")
        if longest > buckets[-1]:
            raise ValueError(
                f"a prompt has {longest} tokens, the largest of prompt_buckets={buckets} is "
                f"{buckets[-1]}; add a bucket or shorten the history"
            )
        self._waiting += requests

    def advance(self, expected: int) -> list[tuple[int, Action]] | None:
        """Fills free slots and writes a chunk of every action.

        Args:
          expected: episodes that may still submit something, those waiting or in slots included.

        Returns:
          (row, action) of the actions that ended; None once nothing is expected in any process.
        """
        live = self._by_shard([draft is not None for draft in self._drafts])
        least = max((sum(shard) for shard in live), default=0) * self._policy.shards
        longest = max((len(r.prompt) for r in self._waiting), default=1)
        expected, longest = _agreed(max(expected, least), longest)
        if not expected:
            return None
        with self._mesh():
            self._resize(self._policy.rows(expected), self._policy.columns(longest))
            self._fill(longest)
            if not _agreed(any(self._drafts))[0]:
                return []
            return self._decode()

    # --------------------------------------------------------------- slots

    def _resize(self, rows: int, columns: int) -> None:
        """Slots for the episodes that are left and the prompts there are."""
        columns = max(columns, self._columns)
        if self._slots is None:
            self._slots = self._policy.programs.empty(self._global(rows), columns)
            self._drafts = [None] * rows
        elif rows < len(self._drafts) or columns > self._columns:
            self._move(min(rows, len(self._drafts)), columns)
        self._columns = columns

    def _move(self, rows: int, columns: int) -> None:
        source, drafts = [], []
        for shard in self._by_shard(self._drafts):
            live = [n for n, draft in enumerate(shard) if draft is not None]
            free = [n for n, draft in enumerate(shard) if draft is None]
            chosen = (live + free)[: rows // self._policy.shards]
            source += chosen
            drafts += [shard[n] for n in chosen]
        (table,) = self._placed(np.asarray(source, np.int32))
        self._slots = self._policy.programs.move(self._slots, table, columns)
        self._drafts = drafts

    def _by_shard(self, per_slot: Sequence) -> list[Sequence]:
        """The slots of each device of this process."""
        size = len(per_slot) // self._policy.shards
        return [per_slot[n : n + size] for n in range(0, len(per_slot), size)] if size else []

    # --------------------------------------------------------------- prompts

    def _fill(self, longest: int) -> None:
        """Reads waiting prompts, those of early turns first, into free slots."""
        policy = self._policy
        columns = self._columns if policy.packs else policy.columns(longest)
        shards = self._lines(columns)
        most_lines = max(len(lines) for lines in shards)
        (most_lines,) = _agreed(most_lines)
        if not most_lines:
            return
        size = len(self._drafts) // policy.shards
        if policy.packs:
            at_once, entries = max(1, PREFILL_TOKENS // columns), min(ENTRIES, size)
        else:
            at_once, entries = policy.rows(most_lines * policy.shards) // policy.shards, size
        for first in range(0, most_lines, at_once):
            batch = [lines[first : first + at_once] for lines in shards]
            self._read(batch, (at_once, columns), entries)

    def _lines(self, columns: int) -> list[list[_Line]]:
        """The prompts that find a free slot, on lines of their shard."""
        size = len(self._drafts) // self._policy.shards
        free = [
            [n for n, draft in enumerate(shard) if draft is None]
            for shard in self._by_shard(self._drafts)
        ]
        self._waiting.sort(key=lambda r: r.turn)  # who is behind: all end at about the same time
        count = sum(len(slots) for slots in free)
        now, self._waiting = self._waiting[:count], self._waiting[count:]
        alike: dict[bytes, list[Request]] = {}  # the first prompts of a group are one prompt
        for request in now:
            alike.setdefault(request.prompt.tobytes(), []).append(request)
        parts: list[list[tuple[np.ndarray, list]]] = [[] for _ in free]
        for requests in alike.values():
            while requests:
                shard = max(range(len(free)), key=lambda n: len(free[n]))
                taken, requests = requests[: len(free[shard])], requests[len(free[shard]) :]
                slots = [free[shard].pop(0) for _ in taken]
                parts[shard].append((taken[0].prompt, list(zip(slots, taken, strict=True))))
                for slot, request in zip(slots, taken, strict=True):
                    self._drafts[shard * size + slot] = _Draft(request.row, [], [])
        return [_packed(some, columns, self._parts(columns)) for some in parts]

    def _parts(self, columns: int) -> int:
        return max(1, columns // PART_TOKENS) if self._policy.packs else 1

    def _read(self, shards: list[list[_Line]], shape: tuple[int, int], entries: int) -> None:
        """One prefill, and as many fills as its prompts need."""
        at_once, columns = shape
        policy, size = self._policy, len(self._drafts) // self._policy.shards
        tokens = np.full((len(shards) * at_once, columns), policy.cfg.pad_id, np.int32)
        lengths = np.zeros((len(tokens), self._parts(columns)), np.int32)
        tables: list[list[Entry]] = [[] for _ in shards]
        for shard, lines in enumerate(shards):
            for number, line in enumerate(lines):
                start, place = 0, shard * at_once + number
                for part, (prompt, slots) in enumerate(zip(line.prompts, line.slots, strict=True)):
                    length = len(prompt)
                    tokens[place, start : start + length] = prompt
                    lengths[place, part] = length
                    tables[shard] += [
                        Entry(slot, number, part, start, length, request.turn, request.row)
                        for slot, request in slots
                    ]
                    start += length
        (fills,) = _agreed(max(-(-len(table) // entries) for table in tables))
        nothing = Entry(size, 0, 0, 0, 0, 0, 0)
        states, prompts = policy.programs.prefill(self._weights, *self._placed(tokens, lengths))
        for table in tables:
            table += [nothing] * (fills * entries - len(table))
        numbers = np.asarray(tables, np.int32).reshape(len(shards), fills, entries, len(nothing))
        for n in range(fills):
            (table,) = self._placed(numbers[:, n].reshape(-1, len(nothing)))
            self._slots = policy.programs.fill(self._slots, prompts, states, table, self._key)

    # --------------------------------------------------------------- actions

    def _decode(self) -> list[tuple[int, Action]]:
        policy = self._policy
        temperature = np.float32(policy.cfg.temperature)
        self._slots, table = policy.programs.decode(self._weights, self._slots, temperature)
        numbers = to_local(table)
        width = policy.cfg.chunk + 1
        tokens, logp = numbers[:, :width], np.ascontiguousarray(numbers[:, width : 2 * width])
        logp = logp.view(np.float32)
        drawn, live, steps = numbers[:, 2 * width :].T
        finished = []
        for n, draft in enumerate(self._drafts):
            if draft is None:
                continue
            before = sum(map(len, draft.tokens))
            first = 1 if before else 0  # column 0 is of those whose prompt has just been read
            written = slice(first, first + int(drawn[n]) - before)
            draft.tokens.append(tokens[n, written])
            draft.logp.append(logp[n, written])
            policy.counts.kept += written.stop - 1
            if not live[n]:
                action = Action(np.concatenate(draft.tokens), np.concatenate(draft.logp))
                finished.append((draft.row, action))
                self._drafts[n] = None
        policy.counts.steps += int(steps[0]) * len(self._drafts)
        return finished

    # --------------------------------------------------------------- devices

    def _mesh(self) -> Any:
        mesh = self._policy.mesh
        return jax.set_mesh(mesh) if mesh else contextlib.nullcontext()

    def _placed(self, *host: np.ndarray) -> Sequence:
        """This process's rows as global arrays."""
        return to_global(host, self._policy.mesh) if self._policy.mesh else host

    def _global(self, rows: int) -> int:
        return rows * jax.process_count()


def _packed(parts: list[tuple[np.ndarray, list]], columns: int, most: int) -> list[_Line]:
    """Prompts on lines of `columns` tokens and at most `most` prompts, the longest first."""
    lines: list[_Line] = []
    for prompt, slots in sorted(parts, key=lambda part: -len(part[0])):
        for line in lines:
            if len(line.prompts) < most and sum(map(len, line.prompts)) + len(prompt) <= columns:
                break
        else:
            line = _Line([], [])
            lines.append(line)
        line.prompts.append(prompt)
        line.slots.append(slots)
    return lines


def _agreed(*numbers: int) -> tuple[int, ...]:
    """The largest of all processes."""
    if jax.process_count() == 1:
        return tuple(int(n) for n in numbers)
    return tuple(int(n) for n in multihost_utils.process_allgather(np.array(numbers)).max(0))
