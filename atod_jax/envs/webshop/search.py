"""BM25 exactly as Lucene scores it, and its first hits without looking at every document.

A term's weight in a document is w - w / (1 + tf * norm) in float32, where w is the term's idf times
its count in the query, and norm depends on the document's length, kept to four significant bits.
A query's score is the sum, ties go to the smaller product id. `Index.hits` finds the same list as
scoring everything (`Index.scores`), but stops growing its set of candidates as soon as the terms
left over could not lift a new document into it (MaxScore).
"""

import functools
import hashlib
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from atod_jax.envs.webshop.analyser import analyse

K1, B = np.float32(0.9), np.float32(0.4)
HITS = 50
_LONG_LIST = 4096  # postings from which it pays to ask whether a term can be left for look-ups
_PROBES = 128  # candidates scored in full to get it
_SLACK = 1e-5  # scores this close may round to the same float32

Arrays = Mapping[str, np.ndarray]


def term_key(term: str) -> int:
    """64 bits that stand for a term."""
    return int.from_bytes(hashlib.blake2b(term.encode(), digest_size=8).digest(), "little")


def kept_length(lengths: np.ndarray) -> np.ndarray:
    """Document lengths as Lucene's one-byte code keeps them.

    Args:
      lengths: [n] int64 token counts.
    """
    rest = np.maximum(lengths - 24, 0)
    shift = np.maximum(np.frexp(rest.astype(np.float64))[1] - 4, 0)
    return np.where(lengths < 24, lengths, 24 + ((rest >> shift) << shift))


def saturations(tf: np.ndarray, lengths: np.ndarray, mean_length: float) -> np.ndarray:
    """1 + tf * norm per posting, float32.

    Args:
      tf: [n] occurrences of the term.
      lengths: [n] kept lengths of the documents.
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

    @functools.lru_cache(maxsize=1024)  # noqa: B019  # an index lives as long as its process
    def search(self, query: str) -> tuple[int, ...]:
        """The documents found by a query text, best first, at most HITS."""
        return self.hits(analyse(query))

    def hits(self, terms: Sequence[str]) -> tuple[int, ...]:
        """The HITS best documents that hold any of the terms, best first."""
        postings = sorted(self._postings(terms), key=lambda posting: len(posting.docs))
        with self._lock:
            found, left, reached = self._gather(postings)
            scores = self._scores[found]
            self._scores[found] = 0
        for number in range(left, len(postings)):
            rest = sum(posting.bound for posting in postings[number:])
            keep = scores + rest >= reached - _SLACK
            found, scores = found[keep], scores[keep]
            scores = scores + _lookup(postings[number], found)
            reached = max(reached, _threshold(scores))
        return self._best(found, scores)

    def scores(self, terms: Sequence[str]) -> np.ndarray:
        """[N] float32, the score of every document: what `hits` must agree with."""
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
            for place, key, count in zip(places, keys, counts.values())
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

    def _gather(self, postings: Sequence[Posting]) -> tuple[np.ndarray, int, float]:
        """Adds up terms, rare ones first, until the others could lift no new document far enough.

        Returns the documents seen, how many terms were added up, and a score that HITS documents
        are known to reach. The sums are left in the scratch array.
        """
        found, reached = np.zeros(0, np.uint32), -np.inf
        for number, posting in enumerate(postings):
            left = postings[number:]
            if len(posting.docs) >= _LONG_LIST and len(found) >= HITS:
                reached = max(reached, self._reachable(found, left))
                if sum(other.bound for other in left) < reached - _SLACK:
                    return found, number, reached
            new = posting.docs[self._scores[posting.docs] == 0]
            self._scores[posting.docs] += posting.weights[posting.codes]
            found = np.concatenate([found, new])
        return found, len(postings), reached

    def _reachable(self, found: np.ndarray, left: Sequence[Posting]) -> float:
        """What HITS documents score at least, from scoring some with the rarest terms in full."""
        rarest = found[:_LONG_LIST]
        count = min(_PROBES, len(rarest))
        docs = np.sort(rarest[np.argpartition(self._scores[rarest], -count)[-count:]])
        scores = self._scores[docs]
        for posting in left:
            scores = scores + _lookup(posting, docs)
        return _threshold(scores)

    def _best(self, found: np.ndarray, scores: np.ndarray) -> tuple[int, ...]:
        keep = scores >= _threshold(scores) - _SLACK
        found, scores = found[keep], scores[keep].astype(np.float32)
        order = np.lexsort((self._arrays["ranks"][found], -scores))[:HITS]
        return tuple(found[order].tolist())


def _threshold(scores: np.ndarray) -> float:
    """The HITS-th best score; minus infinity where there are fewer."""
    if len(scores) < HITS:
        return -np.inf
    return float(np.partition(scores, -HITS)[-HITS])


def _lookup(posting: Posting, docs: np.ndarray) -> np.ndarray:
    """The weight of each document, 0 where the term is absent."""
    places = np.searchsorted(posting.docs, docs)
    places = np.minimum(places, len(posting.docs) - 1)
    present = posting.docs[places] == docs
    return np.where(present, posting.weights[posting.codes[places]], np.float32(0))
