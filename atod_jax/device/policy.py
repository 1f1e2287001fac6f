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

from atod_jax.device.desk import Desk
from atod_jax.device.sampling import SamplingConfig
from atod_jax.device.slots import Entry, Programs, Slots, Written, programs
from atod_jax.models import LanguageModel
from atod_jax.records import Action, Request
from atod_jax.sharding import local_shards, to_global, to_host, to_local

ROW_UNIT = 8  # the smallest number of slots
PREFILL_TOKENS = 2048  # read by a device at a time, so that its products are large enough
CPU_LINES = 8  # that a CPU reads at a time, each with one prompt
CACHE_COLUMNS = 256  # slots of an accelerator are a multiple of this long
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
        # A CPU reads every prompt on a line of its own, where attention to what precedes it would
        # cost more than the padding.
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

    def line_columns(self, longest: int) -> int:
        """How long the lines are that prompts of up to `longest` tokens are read on."""
        return max(PREFILL_TOKENS, self.columns(longest)) if self.packs else self.columns(longest)

    def cache_columns(self, longest: int, fullest: int) -> int:
        """How long the slots are for prompts of up to `longest` tokens, where the fullest holds
        `fullest`: on an accelerator as little as a few sizes allow, since all of it is memory."""
        cfg = self.cfg
        whole = self.columns(longest) + cfg.room
        if not (self.packs and cfg.room):
            return whole
        needed = max(longest, fullest) + cfg.chunk
        return min(-(-needed // CACHE_COLUMNS) * CACHE_COLUMNS, cfg.prompt_buckets[-1] + cfg.room)

    def parts(self, columns: int) -> int:
        """Prompts on a line of so many columns, at most."""
        return max(1, columns // PART_TOKENS) if self.packs else 1

    def lines(self, parts: "Line", columns: int) -> list["Line"]:
        """The prompts on lines of so many columns; the longest first, each where it fits."""
        lines, left, most = [], [], self.parts(columns)
        if most == 1:
            return [[part] for part in parts]
        for part in sorted(parts, key=lambda part: -len(part.prompt)):
            length = len(part.prompt)
            fits = (n for n, line in enumerate(lines) if left[n] >= length and len(line) < most)
            n = next(fits, len(lines))
            if n == len(lines):
                lines.append([])
                left.append(columns)
            lines[n].append(part)
            left[n] -= length
        return lines

    def rows(self, count: int) -> int:
        """How many slots there are for so many actions at a time."""
        unit = math.lcm(ROW_UNIT, self.shards)
        return row_bucket(count, unit=unit, most=self.cfg.slots)


def row_bucket(rows: int, *, unit: int, most: int) -> int:
    """The smallest that fits of `most`, a quarter of it, a sixteenth, ..., in whole units: a padded
    row costs little, a compiled shape seconds. `most` for more than that."""
    if rows == 0:
        return 0
    units = -(-most // unit)
    while units > 3 and (fewer := -(-units // 4)) * unit >= rows:
        units = fewer
    return units * unit


class _Part(NamedTuple):
    """A prompt on a line, and who has asked it."""

    prompt: np.ndarray
    askers: list[tuple[int, Request]]  # slots of the line's shard, and their requests


Line = list[_Part]  # prompts that are read one after another


class _Batch(NamedTuple):
    """What is read at a time, equally much in every process."""

    shards: list[list[Line]]
    height: int  # lines of a shard, those without a prompt included
    columns: int
    fills: int  # programs that put the prompts into slots
    entries: int  # slots of a shard that each of them fills, at most


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
        self._columns = 0  # that the slots have
        self._desk = Desk.of(0, policy.cfg.max_new_tokens, shards=policy.shards)

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
        fullest = max(map(np.count_nonzero, self._desk.busy), default=0)
        longest = max((len(r.prompt) for r in self._waiting), default=1)
        expected, longest, held = _agreed(
            max(expected, fullest * self._policy.shards), longest, self._desk.held
        )
        if not expected:
            return None
        mesh = self._policy.mesh
        with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
            columns = self._policy.cache_columns(longest, held)
            self._resize(self._policy.rows(expected), columns)
            batches, busy = self._plan(longest)
            # from here on nothing is agreed: talking would disturb programs that span processes
            for batch in batches:
                self._read(batch)
            return self._decode() if busy else []

    def _resize(self, rows: int, columns: int) -> None:
        """Slots for the episodes that are left and the prompts there are."""
        programs, shards = self._policy.programs, self._policy.shards
        columns = max(columns, self._columns)
        if self._slots is None:
            self._slots = programs.empty(rows * jax.process_count(), columns)
            self._desk = Desk.of(rows, self._policy.cfg.max_new_tokens, shards=shards)
        elif rows < len(self._desk.row) or columns > self._columns:
            # those that are busy first
            order = np.argsort(~self._desk.busy, axis=1, kind="stable")[:, : rows // shards]
            (source,) = self._placed(order.astype(np.int32).reshape(-1))
            self._slots = programs.move(self._slots, source, columns)
            self._desk = self._desk.moved(order)
        self._columns = columns

    # --------------------------------------------------------------- prompts

    def _plan(self, longest: int) -> tuple[list[_Batch], bool]:
        """Gives free slots to waiting prompts: what is to be read, and whether a slot is busy."""
        policy, size = self._policy, self._desk.busy.shape[1]
        columns = policy.line_columns(longest)
        shards = [policy.lines(parts, columns) for parts in self._seated()]
        height = max(1, PREFILL_TOKENS // columns) if policy.packs else CPU_LINES
        entries = min(ENTRIES, size)
        cuts = [[lines[n : n + height] for n in range(0, len(lines), height)] for lines in shards]
        askers = max((_askers(lines) for batches in cuts for lines in batches), default=0)
        fills, count, busy = _agreed(
            -(-askers // entries), max(map(len, shards)), self._desk.busy.any()
        )
        batches = [
            _Batch([lines[n : n + height] for lines in shards], height, columns, fills, entries)
            for n in range(0, count, height)
        ]
        return batches, bool(busy)

    def _seated(self) -> list[Line]:
        """The prompts that find a free slot, per shard; those of early turns first, so that all
        episodes end at about the same time."""
        desk = self._desk
        free = [np.flatnonzero(~busy).tolist() for busy in desk.busy]
        self._waiting.sort(key=lambda r: r.turn)
        count = sum(map(len, free))
        now, self._waiting = self._waiting[:count], self._waiting[count:]
        alike: dict[bytes, list[Request]] = {}  # the first prompts of a group are one prompt
        for request in now:
            alike.setdefault(request.prompt.tobytes(), []).append(request)
        parts: list[Line] = [[] for _ in free]
        for requests in alike.values():
            while requests:
                shard = max(range(len(free)), key=lambda n: len(free[n]))
                askers = list(zip(free[shard], requests, strict=False))
                del free[shard][: len(askers)], requests[: len(askers)]
                parts[shard].append(_Part(askers[0][1].prompt, askers))
                first = shard * desk.busy.shape[1]
                for slot, request in askers:
                    desk.begin(first + slot, request)
        return parts

    def _read(self, batch: _Batch) -> None:
        """One prefill, and the fills of the slots that have asked."""
        programs, (shards, height, columns, fills, at_once) = self._policy.programs, batch
        tokens = np.full((len(shards) * height, columns), self._policy.cfg.pad_id, np.int32)
        lengths = np.zeros((len(tokens), self._policy.parts(columns)), np.int32)
        entries: list[list[Entry]] = [[] for _ in shards]
        for shard, lines in enumerate(shards):
            for number, line in enumerate(lines):
                start = 0
                for part, (prompt, askers) in enumerate(line):
                    length, place = len(prompt), shard * height + number
                    tokens[place, start : start + length] = prompt
                    lengths[place, part] = length
                    entries[shard] += [
                        Entry(slot, number, part, start, length, request.turn, request.row)
                        for slot, request in askers
                    ]
                    start += length
        table = np.zeros((len(shards), fills * at_once, len(Entry._fields)), np.int32)
        table[:, :, 0] = self._desk.busy.shape[1]  # no slot
        for shard, some in enumerate(entries):
            table[shard, : len(some)] = np.reshape(some, (-1, table.shape[2]))
        hidden, prompts = programs.prefill(self._weights, *self._placed(tokens, lengths))
        for some in np.split(table, fills, axis=1):
            (some,) = self._placed(some.reshape(-1, table.shape[2]))
            self._slots = programs.fill(self._slots, prompts, hidden, some, self._key)

    # --------------------------------------------------------------- actions

    def _decode(self) -> list[tuple[int, Action]]:
        policy = self._policy
        temperature = np.float32(policy.cfg.temperature)
        self._slots, table = policy.programs.decode(self._weights, self._slots, temperature)
        chunk = Written.read(to_local(table))
        policy.counts.steps += chunk.steps * len(self._desk.row)
        policy.counts.kept += self._desk.book(chunk)
        ended = np.flatnonzero((self._desk.row >= 0) & ~chunk.live)
        return [self._finished(slot) for slot in ended.tolist()]

    def _finished(self, slot: int) -> tuple[int, Action]:
        row, action = self._desk.end(slot)
        last = set(action.tokens[-1:].tolist())
        return row, action._replace(cut=last.isdisjoint(self._policy.cfg.eos_ids))

    def _placed(self, *host: np.ndarray) -> Sequence:
        """This process's rows as global arrays."""
        mesh = self._policy.mesh
        return to_global(host, mesh) if mesh and mesh.size > 1 else host


def _askers(lines: Sequence[Line]) -> int:
    return sum(len(part.askers) for line in lines for part in line)


def _agreed(*numbers: Any) -> tuple[int, ...]:
    """The largest of all processes."""
    if jax.process_count() > 1:
        numbers = multihost_utils.process_allgather(np.array(numbers, int)).max(0)
    return tuple(map(int, numbers))
