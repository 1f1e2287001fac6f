"""BM25 as Lucene scores it, and its first hits without looking at every document.

A term's weight in a document is w - w / (1 + tf * norm) in float32, where w is the term's idf times
its count in the query, and norm depends on the document's length. A query's score is the sum of
these weights. `Index.best` finds the same list as scoring everything (`Index.scores`), but stops
growing its set of candidates as soon as the terms left over could not lift a new document into it
(MaxScore). `Builder` makes the arrays: one pass over the texts, then one over counts, of which only
nine bytes per distinct term of a document are kept in memory.

Knows no language: how a text becomes words and a word a term is up to whoever builds an index.
Written out in NumPy, since a library that computes with JAX as soon as it is imported would claim
the accelerator in every process that plays.
"""

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

K1, B = np.float32(0.9), np.float32(0.4)
LONG_LIST = 4096  # postings from which it pays to ask whether a term can be left for look-ups
_PROBES = 128  # candidates scored in full to get it
_SLACK = 1e-5  # scores this close may round to the same float32

_STOP_WORDS = """
    a an and are as at be but by for if in into is it no not of on or such that the their then
    there these they this to was will with
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())

Arrays = Mapping[str, np.ndarray]
Allocate = Callable[[str, int, Any], np.ndarray]  # (name, length, dtype) -> array to fill


def term_key(term: str) -> int:
    """64 bits that stand for a term."""
    return int.from_bytes(hashlib.blake2b(term.encode(), digest_size=8).digest(), "little")


def saturations(tf: np.ndarray, lengths: np.ndarray, *, mean_length: float) -> np.ndarray:
    """1 + tf * norm per posting, float32.

    Args:
      tf: [n] occurrences of the term.
      lengths: [n] lengths of the documents.
      mean_length: tokens per document.
    """
    one = np.float32(1)
    share = lengths.astype(np.float32) / np.float32(mean_length)
    return one + tf.astype(np.float32) * (one / (K1 * ((one - B) + B * share)))


class Posting(NamedTuple):
    """The documents of one query term."""

    docs: np.ndarray  # [n] uint32, increasing
    codes: np.ndarray  # [n] which weight each document gets
    weights: np.ndarray  # [codes] float32, increasing
    bound: float  # the largest weight that occurs


class Index:
    """Postings in arrays that may be memory-mapped; one per process, it keeps a scratch array.

    Args:
      arrays: `keys` [V] uint64 increasing term keys; `starts` [V+1] int64 where a term's postings
        lie in `docs` [P] uint32 and `codes` [P]; `saturation` [C] float32 increasing, what a code
        stands for; `tops` [V] the largest code of a term; `ranks` [N] uint32, the place of each
        document's id in the sorted ids; `documents` [1], how many hold any term.
    """

    def __init__(self, arrays: Arrays):
        self._arrays = arrays
        self._keys = arrays["keys"]
        self._documents = int(arrays["documents"][0])
        self._scores = np.zeros(len(arrays["ranks"]))
        self._lock = threading.Lock()  # one query at a time: they share the scratch array

    def __len__(self) -> int:
        return len(self._scores)

    def best(
        self, terms: Sequence[str], count: int, *, long_list: int = LONG_LIST
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `count` best documents that hold any of the terms, best first, and their scores.

        Args:
          terms: of the query, with repetitions.
          count: documents asked for.
          long_list: postings from which a term is left for look-ups where that is possible; the
            result does not depend on it.

        Returns:
          ([n] documents, [n] float32 scores), n <= `count`; equal scores in the order of the ids.
        """
        postings = sorted(self._postings(terms), key=lambda posting: len(posting.docs))
        with self._lock:
            found, left, reached = self._gather(postings, count=count, long_list=long_list)
            scores = self._scores[found]
            self._scores[found] = 0
        for number in range(left, len(postings)):
            rest = sum(posting.bound for posting in postings[number:])
            keep = scores + rest >= reached - _SLACK
            found, scores = found[keep], scores[keep]
            scores = scores + _lookup(postings[number], found)
            reached = max(reached, _threshold(scores, count))
        return self._sorted(found, scores, count=count)

    def scores(self, terms: Sequence[str]) -> np.ndarray:
        """[N] float32, the score of every document: what `best` must agree with."""
        total = np.zeros(len(self))
        for posting in self._postings(terms):
            total[posting.docs] += posting.weights[posting.codes]
        return total.astype(np.float32)

    def _postings(self, terms: Sequence[str]) -> list[Posting]:
        counts = Counter(terms)
        keys = np.array([term_key(term) for term in counts], np.uint64)
        places = np.searchsorted(self._keys, keys)
        return [
            self._posting(int(place), count)
            for place, key, count in zip(places, keys, counts.values(), strict=True)
            if place < len(self._keys) and self._keys[place] == key
        ]

    def _posting(self, place: int, count: int) -> Posting:
        start, end = (int(bound) for bound in self._arrays["starts"][place : place + 2])
        df = end - start
        idf = np.float32(np.log(1 + (self._documents - df + 0.5) / (df + 0.5)))
        top = np.float32(count) * idf
        weights = top - top / self._arrays["saturation"]
        docs, codes = self._arrays["docs"][start:end], self._arrays["codes"][start:end]
        return Posting(docs, codes, weights, float(weights[self._arrays["tops"][place]]))

    def _gather(
        self, postings: Sequence[Posting], *, count: int, long_list: int
    ) -> tuple[np.ndarray, int, float]:
        """Adds up terms, rare ones first, until the others could lift no new document far enough.

        Returns the documents seen, how many terms were added up, and a score that `count`
        documents are known to reach. The sums are left in the scratch array.
        """
        found, reached = np.zeros(0, np.uint32), -np.inf
        for number, posting in enumerate(postings):
            left = postings[number:]
            if len(posting.docs) >= long_list and len(found) >= count:
                probed = self._reachable(found[:long_list], left, count=count)
                reached = max(reached, probed)
                if sum(other.bound for other in left) < reached - _SLACK:
                    return found, number, reached
            new = posting.docs[self._scores[posting.docs] == 0]
            self._scores[posting.docs] += posting.weights[posting.codes]
            found = np.concatenate([found, new])
        return found, len(postings), reached

    def _reachable(self, rarest: np.ndarray, left: Sequence[Posting], *, count: int) -> float:
        """What `count` documents score at least: some with the rarest terms are scored in full."""
        probes = min(_PROBES, len(rarest))
        docs = np.sort(rarest[np.argpartition(self._scores[rarest], -probes)[-probes:]])
        scores = self._scores[docs]
        for posting in left:
            scores = scores + _lookup(posting, docs)
        return _threshold(scores, count)

    def _sorted(
        self, found: np.ndarray, scores: np.ndarray, *, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        keep = scores >= _threshold(scores, count) - _SLACK
        found, scores = found[keep], scores[keep].astype(np.float32)
        order = np.lexsort((self._arrays["ranks"][found], -scores))[:count]
        return found[order], scores[order]


def _threshold(scores: np.ndarray, count: int) -> float:
    """The `count`-th best score; minus infinity where there are fewer."""
    if len(scores) < count:
        return -np.inf
    return float(np.partition(scores, -count)[-count])


def _lookup(posting: Posting, docs: np.ndarray) -> np.ndarray:
    """The weight of each document, 0 where the term is absent."""
    places = np.searchsorted(posting.docs, docs)
    places = np.minimum(places, len(posting.docs) - 1)
    present = posting.docs[places] == docs
    return np.where(present, posting.weights[posting.codes[places]], np.float32(0))


# ----------------------------------------------------------------------------------------- building


class _Numbers(dict[str, int]):
    """word -> number of its term, given out in order of appearance; -1 for a stop word."""

    def __init__(self, term: Callable[[str], str]) -> None:
        super().__init__()
        self._term = term
        self.terms: dict[str, int] = {}

    def __missing__(self, word: str) -> int:
        found = self._term(word)
        number = self.terms.setdefault(found, len(self.terms)) if found else -1
        self[word] = number
        return number


class Builder:
    """Takes documents in order, then fills the arrays of `Index`.

    Args:
      term: the index term of a word, "" for a stop word; called once per word.
      kept: document lengths [n] int64 as the score sees them.
      chunk: documents counted together.
    """

    def __init__(
        self,
        term: Callable[[str], str],
        *,
        kept: Callable[[np.ndarray], np.ndarray] = lambda lengths: lengths,
        chunk: int = 16384,
    ) -> None:
        self._numbers, self._kept, self._chunk = _Numbers(term), kept, chunk
        self._pending: list[list[int]] = []
        self._chunks: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._lengths: list[np.ndarray] = []
        self._count = 0

    def add(self, words: Iterable[str]) -> None:
        """Counts the terms of the next document."""
        self._pending.append([self._numbers[word] for word in words])
        if len(self._pending) == self._chunk:
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
        kept, mean_length = self._kept(lengths), lengths.sum() / documents
        allocate("documents", 1, np.int64)[:] = documents
        allocate("ranks", len(ids), np.uint32)[np.argsort(ids, kind="stable")] = np.arange(len(ids))
        places = self._fill_terms(allocate)
        values = self._saturation_values(kept, mean_length)
        allocate("saturation", len(values), np.float32)[:] = values
        self._fill_postings(places, values, allocate, kept=kept, mean_length=mean_length)

    def _fill_terms(self, allocate: Allocate) -> np.ndarray:
        """[V] the place of each numbered term among the sorted keys."""
        keys = np.array([term_key(found) for found in self._numbers.terms], np.uint64)
        order = np.argsort(keys)
        if len(np.unique(keys)) < len(keys):
            raise ValueError("two terms share one 64-bit key; lengthen bm25.term_key")
        allocate("keys", len(keys), np.uint64)[:] = keys[order]
        places = np.empty(len(keys), np.int64)
        places[order] = np.arange(len(keys))
        return places

    def _saturation_values(self, kept: np.ndarray, mean_length: float) -> np.ndarray:
        found = [
            np.unique(saturations(tf, kept[docs], mean_length=mean_length))
            for _, docs, tf in self._chunks
        ]
        return np.unique(np.concatenate(found))

    def _fill_postings(
        self,
        places: np.ndarray,
        values: np.ndarray,
        allocate: Allocate,
        *,
        kept: np.ndarray,
        mean_length: float,
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
            codes = np.searchsorted(values, saturations(tf, kept[docs], mean_length=mean_length))
            first = np.flatnonzero(np.diff(terms, prepend=np.int64(-1)))
            sizes = np.diff(first, append=len(terms))
            at = places[terms[first]]
            target = np.repeat(cursor[at] - first, sizes) + np.arange(len(terms))
            all_docs[target], all_codes[target] = docs, codes
            tops[at] = np.maximum(tops[at], np.maximum.reduceat(codes, first)) if len(at) else 0
            cursor[at] += sizes
