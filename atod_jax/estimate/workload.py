"""Turns of given lengths, packed as training packs them and played as sampling plays them."""

import collections
import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from atod_jax.device.lines import Room
from atod_jax.device.policy import Policy
from atod_jax.device.sampling import SamplingConfig
from atod_jax.device.slots import Entry, Programs
from atod_jax.episodes.packing import Form, pack_turns
from atod_jax.estimate.work import Lengths
from atod_jax.models import LanguageModel
from atod_jax.records import Request, StopReason, Task, Trajectory, Turn
from atod_jax.types import Rows, TurnBatch

FIRST_ID, IDS = 2, 1000  # of random tokens; those before are padding and the end of an action


class Batch(NamedTuple):
    """A batch of turns in equal micro-batches, on the host."""

    turns: TurnBatch  # of all of them
    form: Form
    room: Room
    minibatch: tuple[int, ...]  # of every micro-batch; -1 where it is empty
    lengths: Lengths

    @property
    def micro_batches(self) -> int:
        """Micro-batches that hold something."""
        return sum(number >= 0 for number in self.minibatch)

    @property
    def minibatches(self) -> int:
        return max(self.minibatch) + 1

    def rows(self, number: int) -> Rows:
        """Those of one micro-batch."""
        lines, size = self.form.micro_lines, self.form.micro_lines * self.form.rows
        rows = jax.tree.map(lambda x: x[number * size : (number + 1) * size], self.turns.rows)
        assert self.turns.rows.lines is not None
        tokens = self.turns.rows.lines.tokens[number * lines : (number + 1) * lines]
        return rows.replace(lines=rows.lines.replace(tokens=tokens))


def packed(lengths: Lengths, form: Form, *, minibatch_rows: int, shards: int = 1) -> Batch:
    """Turns of these lengths as training packs them."""
    batch, minibatch = pack_turns(
        [episode(lengths)],
        form=form,
        minibatch_rows=minibatch_rows,
        pad_id=0,
        rng=np.random.default_rng(0),
    )
    tokens = np.asarray(batch.rows.action_mask).sum(axis=1).reshape(-1, form.rows).sum(axis=1)
    most = min(form.columns, form.rows * form.response_columns)
    room = Room.of(tokens, most=most, micro_lines=form.micro_lines, shards=shards)
    return Batch(batch, form, room, minibatch, lengths)


def episode(lengths: Lengths) -> Trajectory:
    """Turns of these lengths and of random ids, one after another."""
    rng = np.random.default_rng(0)

    def ids(count: int) -> np.ndarray:
        return rng.integers(FIRST_ID, IDS, count).astype(np.int32)

    turns = tuple(
        Turn(ids(p), ids(a), np.zeros(a, np.float32), "", "", "", valid=True, reward=0.0)
        for p, a in lengths
    )
    return Trajectory(Task("", "", None), 0, turns, success=False, stop=StopReason.done)


# ------------------------------------------------------------------- playing


Read = tuple[int, int, int]  # lines, their columns, and places for prompts in each


@dataclasses.dataclass
class Played:
    """How often a sampler runs its programs for some episodes."""

    reads: collections.Counter[Read]
    fills: collections.Counter[tuple[Read, int, int, int]]  # by these, slots, columns, entries
    chunks: collections.Counter[tuple[int, int]]  # by slots and their columns
    steps: collections.Counter[tuple[int, int]]  # likewise
    kept: float  # share of steps of all slots that wrote a token
    seen: float  # tokens in a slot on average


def play(
    model: LanguageModel,
    cfg: SamplingConfig,
    *,
    prompts: np.ndarray,
    responses: np.ndarray,
    shards: int = 1,
) -> Played:
    """Episodes with prompts and actions of these lengths [turns, episodes], through the sampler of
    training over `shards` devices that only count. Environments answer at once.
    """
    policy = Policy(model, cfg)
    policy.shards, policy.packs = shards, jax.default_backend() != "cpu"
    count = _Counting(cfg, responses)
    policy.programs = count.programs()
    sampler = policy.sampler(None, jax.random.key(0))
    turn = np.zeros(prompts.shape[1], int)
    ready = list(range(len(turn)))
    while True:
        lengths = prompts[turn[ready], ready]
        # prompts of the same ids would be read once
        ids = [np.full(length, row, np.int32) for row, length in zip(ready, lengths, strict=True)]
        sampler.submit([Request(row, int(turn[row]), x) for row, x in zip(ready, ids, strict=True)])
        finished = sampler.advance(int(np.sum(turn < len(prompts))))
        if finished is None:
            break
        turn[[row for row, _ in finished]] += 1
        ready = [row for row, _ in finished if turn[row] < len(prompts)]
    counts = policy.take_counts()
    count.found.kept = counts.kept / counts.steps
    count.found.seen = float(np.average(prompts + responses / 2, weights=responses))
    return count.found


class _Counting:
    """Programs that do nothing but keep the numbers that the sampler looks at."""

    def __init__(self, cfg: SamplingConfig, responses: np.ndarray):
        self._chunk, self._responses = cfg.chunk, responses
        self._columns = 0  # of the slots
        self.found = Played(*(collections.Counter() for _ in range(4)), kept=0.0, seen=0.0)

    def programs(self) -> Programs:
        """In place of those of a device; slots are [tokens drawn, tokens left]."""
        return Programs(self.empty, self.prefill, self.fill, self.decode, self.move)

    def empty(self, rows: int, columns: int) -> Any:
        self._columns = columns
        return np.zeros((rows, 2), np.int32)

    def prefill(self, weights: Any, tokens: np.ndarray, lengths: np.ndarray) -> Any:
        read = (*tokens.shape, lengths.shape[1])
        self.found.reads[read] += 1
        return None, read

    def fill(self, slots: Any, prompts: Any, hidden: Any, entries: Any, key: Any) -> Any:
        self.found.fills[prompts, len(slots), self._columns, len(entries)] += 1
        for entry in map(Entry._make, entries):
            if entry.slot < len(slots):
                slots[entry.slot] = 0, self._responses[entry.turn, entry.row]
        return slots

    def decode(self, weights: Any, slots: Any, temperature: Any) -> Any:
        drawn, left = slots.T
        fresh = (drawn == 0) & (left > 0)
        steps = min(self._chunk, (left - fresh).max())
        slots = slots + np.minimum(left, steps + fresh)[:, None] * [1, -1]
        self.found.chunks[len(slots), self._columns] += 1
        self.found.steps[len(slots), self._columns] += int(steps)
        numbers = np.stack([slots[:, 0], slots[:, 1] > 0, np.full(len(slots), steps)], axis=1)
        tokens = np.zeros((len(slots), 2 * self._chunk + 2))
        return slots, jax.numpy.asarray(np.concatenate([tokens, numbers], axis=1), np.int32)

    def move(self, slots: Any, source: Any, columns: int) -> Any:
        self._columns = columns
        return slots[source]
