"""The shop's search as Lucene does it: its words, its weights, ties to the smaller product id."""

import functools
from collections.abc import Sequence

import numpy as np

from atod_jax.envs import bm25
from atod_jax.envs.webshop.analyser import analyse

HITS = 50
_LONG_LIST = bm25.LONG_LIST


def kept_length(lengths: np.ndarray) -> np.ndarray:
    """Document lengths as Lucene's one-byte code keeps them: to four significant bits.

    Args:
      lengths: [n] int64 token counts.
    """
    rest = np.maximum(lengths - 24, 0)
    shift = np.maximum(np.frexp(rest.astype(np.float64))[1] - 4, 0)
    return np.where(lengths < 24, lengths, 24 + ((rest >> shift) << shift))


class Index:
    """The first HITS documents of a query; `arrays` are those of `bm25.Index`."""

    def __init__(self, arrays: bm25.Arrays):
        self._index = bm25.Index(arrays)
        self.scores = self._index.scores

    @functools.lru_cache(maxsize=1024)  # noqa: B019  # an index lives as long as its process
    def search(self, query: str) -> tuple[int, ...]:
        """The documents found by a query text, best first, at most HITS."""
        return self.hits(analyse(query))

    def hits(self, terms: Sequence[str]) -> tuple[int, ...]:
        """The HITS best documents that hold any of the terms, best first."""
        found, _ = self._index.best(terms, HITS, long_list=_LONG_LIST)
        return tuple(found.tolist())
