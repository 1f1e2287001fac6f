"""Builds the arrays of the shop's search index from texts."""

import numpy as np

from atod_jax.envs import bm25
from atod_jax.envs.webshop.analyser import term, words
from atod_jax.envs.webshop.search import kept_length

_CHUNK = 16384  # documents counted together


class IndexBuilder:
    """Takes texts in document order, then fills the arrays of `search.Index`."""

    def __init__(self) -> None:
        self._builder = bm25.Builder(term, kept=kept_length, chunk=_CHUNK)

    def add(self, text: str) -> None:
        """Counts the terms of the next document."""
        self._builder.add(words(text))

    def finish(self, ids: np.ndarray, allocate: bm25.Allocate) -> None:
        """Fills the arrays; see `bm25.Builder.finish`."""
        self._builder.finish(ids, allocate)
