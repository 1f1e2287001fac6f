"""Builds the arrays of a search index from texts: one pass over the texts, then one over counts.

Only counts are kept in memory, nine bytes per distinct term of a document.
"""

from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np

from atod_jax.envs.webshop.analyser import term, words
from atod_jax.envs.webshop.search import kept_length, saturations, term_key

Allocate = Callable[[str, int, Any], np.ndarray]  # (name, length, dtype) -> array to fill
_CHUNK = 16384  # documents counted together


class _Numbers(dict[str, int]):
    """word -> number of its term, given out in order of appearance; -1 for a stop word."""

    def __init__(self) -> None:
        super().__init__()
        self.terms: dict[str, int] = {}

    def __missing__(self, word: str) -> int:
        found = term(word)
        number = self.terms.setdefault(found, len(self.terms)) if found else -1
        self[word] = number
        return number


class IndexBuilder:
    """Takes texts in document order, then fills the arrays of `search.Index`."""

    def __init__(self) -> None:
        self._numbers = _Numbers()
        self._pending: list[list[int]] = []
        self._chunks: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._lengths: list[np.ndarray] = []
        self._count = 0

    def add(self, text: str) -> None:
        """Counts the terms of the next document."""
        self._pending.append([self._numbers[word] for word in words(text)])
        if len(self._pending) == _CHUNK:
            self._flush()

    def _flush(self) -> None:
        sizes = [len(numbers) for numbers in self._pending]
        terms = np.fromiter(chain.from_iterable(self._pending), np.int64, sum(sizes))
        docs = np.repeat(np.arange(len(sizes)), sizes)[terms >= 0]
        terms = terms[terms >= 0]
        self._lengths.append(np.bincount(docs, minlength=len(sizes)))
        pairs, tf = np.unique(terms << 32 | docs, return_counts=True)
        docs = (pairs & 0xFFFFFFFF) + self._count
        chunk = (pairs >> 32).astype(np.uint32), docs.astype(np.uint32), tf.astype(np.uint16)
        self._chunks.append(chunk)
        self._count += len(sizes)
        self._pending = []

    def finish(self, ids: np.ndarray, allocate: Allocate) -> None:
        """Fills the arrays; `ids` [N] holds the document ids that break ties.

        Raises:
          ValueError: no document, or two terms with one key.
        """
        self._flush()
        lengths = np.concatenate(self._lengths)
        documents = int((lengths > 0).sum())
        if not documents:
            raise ValueError("no document holds a word to search for")
        kept, mean_length = kept_length(lengths), lengths.sum() / documents
        allocate("documents", 1, np.int64)[:] = documents
        allocate("ranks", len(ids), np.uint32)[np.argsort(ids, kind="stable")] = np.arange(len(ids))
        places = self._fill_terms(allocate)
        values = self._saturation_values(kept, mean_length)
        allocate("saturation", len(values), np.float32)[:] = values
        self._fill_postings(places, values, kept, mean_length, allocate)

    def _fill_terms(self, allocate: Allocate) -> np.ndarray:
        """[V] the place of each numbered term among the sorted keys."""
        keys = np.array([term_key(found) for found in self._numbers.terms], np.uint64)
        order = np.argsort(keys)
        if len(np.unique(keys)) < len(keys):
            raise ValueError("two terms share one 64-bit key; lengthen search.term_key")
        allocate("keys", len(keys), np.uint64)[:] = keys[order]
        places = np.empty(len(keys), np.int64)
        places[order] = np.arange(len(keys))
        return places

    def _saturation_values(self, kept: np.ndarray, mean_length: float) -> np.ndarray:
        found = [
            np.unique(saturations(tf, kept[docs], mean_length)) for _, docs, tf in self._chunks
        ]
        return np.unique(np.concatenate(found))

    def _fill_postings(
        self,
        places: np.ndarray,
        values: np.ndarray,
        kept: np.ndarray,
        mean_length: float,
        allocate: Allocate,
    ) -> None:
        """Copies every chunk's runs behind those of the chunks before it."""
        frequency = np.zeros(len(places), np.int64)
        for terms, _, _ in self._chunks:
            frequency += np.bincount(places[terms], minlength=len(places))
        starts = allocate("starts", len(places) + 1, np.int64)
        starts[0] = 0
        np.cumsum(frequency, out=starts[1:])
        all_docs = allocate("docs", int(starts[-1]), np.uint32)
        all_codes = allocate("codes", int(starts[-1]), np.min_scalar_type(len(values)))
        tops = allocate("tops", len(places), all_codes.dtype)
        tops[:] = 0
        cursor = starts[:-1].copy()
        for terms, docs, tf in self._chunks:
            codes = np.searchsorted(values, saturations(tf, kept[docs], mean_length))
            first = np.flatnonzero(np.diff(terms, prepend=np.int64(-1)))
            sizes = np.diff(first, append=len(terms))
            at = places[terms[first]]
            target = np.repeat(cursor[at] - first, sizes) + np.arange(len(terms))
            all_docs[target], all_codes[target] = docs, codes
            tops[at] = np.maximum(tops[at], np.maximum.reduceat(codes, first)) if len(at) else 0
            cursor[at] += sizes
