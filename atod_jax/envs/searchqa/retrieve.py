"""Passages and the search engine over them: BM25 in this process, or anything that can `search`."""

import functools
import re
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import Stemmer

from atod_jax.envs import bm25, jsonl
from atod_jax.envs.bm25 import STOP_WORDS

WORD = re.compile(r"\w\w+")


class RetrieverError(OSError):
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
    number = record["id"]
    if isinstance(number, bool) or not isinstance(number, str | int):
        raise ValueError(f"id={str(number)[:80]!r}: expected a text or a whole number")
    if "contents" in record:
        return Passage(str(number), jsonl.filled(record, "contents"))
    title, text = jsonl.text_of(record, "title"), jsonl.text_of(record, "text")
    if not f"{title}{text}".strip():
        raise ValueError("title and text are empty")
    return Passage(str(number), f'"{title}"\n{text}')


class Bm25:
    """BM25 over passages; equal scores keep the order of the corpus.

    A query is answered alike alone, in a batch, and in another process.
    """

    def __init__(self, passages: Iterable[Passage]):
        self.passages = list(passages)
        self._stemming = threading.Lock()  # a stemmer has one scratch buffer
        self._stem = Stemmer.Stemmer("english").stemWord
        builder = bm25.Builder(self._term)
        for passage in self.passages:
            builder.add(_words(passage.contents))
        arrays: dict[str, np.ndarray] = {}
        builder.finish(
            np.arange(len(self.passages)),
            lambda name, length, dtype: arrays.setdefault(name, np.empty(length, dtype)),
        )
        self._index = bm25.Index(arrays)

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """At most `topk` passages that share a word with the query, best first."""
        return [self._search(query, topk) for query in queries]

    def _search(self, query: str, topk: int) -> list[Hit]:
        with self._stemming:
            terms = [term for term in map(self._term, _words(query)) if term]
        found = zip(*(part.tolist() for part in self._index.best(terms, topk)), strict=True)
        return [
            Hit(self.passages[number].id, self.passages[number].contents, score)
            for number, score in found
        ]

    def _term(self, word: str) -> str:
        return "" if word in STOP_WORDS else self._stem(word)


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


_loading = threading.Lock()


def load(path: str | Path) -> Bm25:
    """The index of a corpus file, built once per process (see `read_passages` for errors)."""
    with _loading:
        return _load(str(path))


@functools.cache
def _load(path: str) -> Bm25:
    return Bm25(read_passages(path))
