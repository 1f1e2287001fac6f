"""Passages and the search engine over them: BM25 in this process, or anything that can `search`.

BM25 is written out in numpy: a library that computes with JAX as soon as it is imported would claim
the accelerator in every process that plays.
"""

import functools
import re
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import Stemmer

from atod_jax.envs import jsonl

K1, B = 0.9, 0.4
WORD = re.compile(r"\w\w+")
_STOP_WORDS = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then"
    " there these they this to was will with"
)
STOP_WORDS = frozenset(_STOP_WORDS.split())


class RetrieverError(RuntimeError):
    """A search that could not be carried out; never shown to the player as if it were a result."""


class Passage(NamedTuple):
    """A piece of the corpus; `contents` is the title in quotes, a newline, the text."""

    id: str
    contents: str


class Hit(NamedTuple):
    """A passage that was found, and how well it fits."""

    id: str
    contents: str
    score: float


class Retriever(Protocol):
    """Finds passages. Instances may be shared by threads."""

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """At most `topk` hits per query, best first.

        Raises:
          RetrieverError: the search could not be carried out.
        """
        ...


def read_passages(path: str | Path) -> list[Passage]:
    """The passages of a file of {id, title, text} or {id, contents} records.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a damaged file, with file and line, or one without passages.
    """
    passages = list(jsonl.read(path, _passage))
    if not passages:
        raise ValueError(f"{path} has no passages; a corpus needs at least one")
    return passages


def _passage(record: dict[str, Any]) -> Passage:
    if "contents" in record:
        return Passage(str(record["id"]), jsonl.text_of(record, "contents"))
    title, text = jsonl.text_of(record, "title"), jsonl.text_of(record, "text")
    return Passage(str(record["id"]), f'"{title}"\n{text}')


class _Terms(dict[str, int]):
    """Word -> number of its stem; every word is stemmed once, stop words are -1."""

    def __init__(self):
        super().__init__(dict.fromkeys(STOP_WORDS, -1))
        self._stem = Stemmer.Stemmer("english").stemWord
        self.stems: dict[str, int] = {}

    def __missing__(self, word: str) -> int:
        self[word] = self.stems.setdefault(self._stem(word), len(self.stems))
        return self[word]


class Bm25:
    """BM25 with Lucene's idf over an inverted index; equal scores keep corpus order.

    Scores are sums in a fixed order of float32 weights that are computed once, so a query is
    answered alike alone, in a batch, and in another process.
    """

    def __init__(self, passages: Iterable[Passage]):
        self.passages = list(passages)
        terms = _Terms()
        words = [
            np.array([terms[w] for w in WORD.findall(p.contents.lower())], np.int64)
            for p in self.passages
        ]
        self._stems = terms.stems
        self._docs, self._weights, self._starts = _postings(words, len(self._stems))
        self._stemming = threading.Lock()  # a stemmer has one scratch buffer
        self._stem = Stemmer.Stemmer("english").stemWords

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """At most `topk` passages that share a word with the query, best first."""
        return [self._search(query, topk) for query in queries]

    def _search(self, query: str, topk: int) -> list[Hit]:
        scores = np.zeros(len(self.passages), np.float32)
        for term, count in sorted(Counter(self._terms(query)).items()):
            here = slice(self._starts[term], self._starts[term + 1])
            scores[self._docs[here]] += self._weights[here] * np.float32(count)
        return [Hit(*self.passages[i], float(scores[i])) for i in _best(scores, topk)]

    def _terms(self, query: str) -> list[int]:
        words = [word for word in WORD.findall(query.lower()) if word not in STOP_WORDS]
        with self._stemming:
            stems = self._stem(words)
        return [self._stems[stem] for stem in stems if stem in self._stems]


def _postings(words: Sequence[np.ndarray], terms: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(passages i32[n], weights f32[n], starts i64[terms + 1]) of an inverted index.

    Args:
      words: per passage, the term of every word, -1 for words that do not count.
    """
    words = [w[w >= 0] for w in words]
    lengths = np.array([len(w) for w in words], np.float64)
    owner = np.repeat(np.arange(len(words)), lengths.astype(np.int64))
    keys, counts = np.unique(
        np.concatenate([*words, np.zeros(0, np.int64)]) * len(words) + owner, return_counts=True
    )
    term, doc = np.divmod(keys, len(words))
    frequency = np.bincount(term, minlength=terms)
    idf = np.log1p((len(words) - frequency + 0.5) / (frequency + 0.5))
    damping = K1 * (1 - B + B * lengths / max(lengths.mean(), 1))
    weights = idf[term] * counts / (counts + damping[doc])
    starts = np.concatenate([[0], np.cumsum(frequency)])
    return doc.astype(np.int32), weights.astype(np.float32), starts


def _best(scores: np.ndarray, topk: int) -> np.ndarray:
    """Indices of the `topk` highest positive scores; the lower index first among equals."""
    found = np.flatnonzero(scores)  # weights are positive, and zeros would slow the partition
    found_scores = scores[found]
    if len(found) > topk:
        least = np.partition(found_scores, -topk)[-topk]
        found, found_scores = found[found_scores >= least], found_scores[found_scores >= least]
    return found[np.argsort(-found_scores, kind="stable")[:topk]]


_loading = threading.Lock()


def load(path: str | Path) -> Bm25:
    """The index of a corpus file, built once per process (see `read_passages` for errors)."""
    with _loading:
        return _load(str(path))


@functools.cache
def _load(path: str) -> Bm25:
    return Bm25(read_passages(path))
