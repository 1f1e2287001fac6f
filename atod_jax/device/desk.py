"""What is written in the slots of one process, on the host: arrays with a row per slot."""

from typing import NamedTuple

import numpy as np

from atod_jax.device.slots import Written
from atod_jax.records import Action, Request


class Desk(NamedTuple):
    """What is written in the slots, on the host."""

    row: np.ndarray  # i64[B], of the episode; -1: the slot is free
    read: np.ndarray  # i64[B], tokens of the prompt
    drawn: np.ndarray  # i64[B], tokens of the action so far
    tokens: np.ndarray  # i32[B, R]
    logp: np.ndarray  # f32[B, R]
    shards: int  # devices of this process that split the slots

    @classmethod
    def of(cls, rows: int, most: int, *, shards: int) -> "Desk":
        """Free slots for actions of up to `most` tokens."""
        shape = (rows, most)
        tokens, logp = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        read, drawn = np.zeros((2, rows), int)
        return cls(np.full(rows, -1), read, drawn, tokens, logp, shards)

    @property
    def held(self) -> int:
        """Tokens in the fullest slot."""
        return int(np.max((self.read + self.drawn)[self.row >= 0], initial=0))

    @property
    def busy(self) -> np.ndarray:
        """bool[shards, slots of each]."""
        return (self.row >= 0).reshape(self.shards, -1)

    def moved(self, source: np.ndarray) -> "Desk":
        """The slots [shards, n] of each shard."""
        size = len(self.row) // self.shards
        chosen = (source + size * np.arange(self.shards)[:, None]).reshape(-1)
        row, read, drawn, tokens, logp = (x[chosen] for x in self[:-1])
        return Desk(row, read, drawn, tokens, logp, self.shards)

    def begin(self, slot: int, request: Request) -> None:
        """An action of an episode."""
        self.row[slot], self.read[slot], self.drawn[slot] = request.row, len(request.prompt), 0

    def book(self, chunk: Written) -> int:
        """Writes a chunk down; returns how many of its steps were not in vain."""
        column = np.arange(chunk.tokens.shape[1])
        first = np.minimum(self.drawn, 1)[:, None]
        count = np.where(self.row >= 0, chunk.drawn - self.drawn, 0)[:, None]
        slot, place = np.nonzero((column >= first) & (column < first + count))
        into = (slot, self.drawn[slot] + place - first[slot, 0])
        self.tokens[into], self.logp[into] = chunk.tokens[slot, place], chunk.logp[slot, place]
        self.drawn[:] += count[:, 0]
        return int(np.count_nonzero(place))  # the first token of an action takes no step

    def end(self, slot: int) -> tuple[int, Action]:
        """(row, action); the slot is free.

        Raises:
          FloatingPointError: a log-probability is not finite.
        """
        row, drawn = int(self.row[slot]), self.drawn[slot]
        self.row[slot] = -1
        if not np.isfinite(self.logp[slot, :drawn]).all():
            raise FloatingPointError(
                "a token was drawn with a log-probability that is not finite: the weights of the "
                "policy are damaged, or its products overflow; load another checkpoint, or use "
                "dtype=float32"
            )
        return row, Action(self.tokens[slot, :drawn].copy(), self.logp[slot, :drawn].copy())
