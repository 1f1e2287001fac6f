"""The shared BM25 index: the best documents are those of scoring all of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atod_jax.envs import bm25

TERMS = [f"t{number}" for number in range(30)]


def make_index(documents, ids) -> bm25.Index:
    arrays: dict[str, np.ndarray] = {}
    builder = bm25.Builder(lambda word: word, chunk=7)
    for words in documents:
        builder.add(words)
    builder.finish(
        np.array(ids), lambda name, n, dtype: arrays.setdefault(name, np.empty(n, dtype))
    )
    return bm25.Index(arrays)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    query=st.lists(st.sampled_from(TERMS), max_size=9),
    count=st.sampled_from([1, 3, 20, 500]),
    long_list=st.sampled_from([1, 10, bm25.LONG_LIST]),
)
def test_the_best_are_those_of_scoring_everything(seed, query, count, long_list):
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, len(TERMS) + 1)
    size = int(rng.integers(1, 300))
    documents = [
        rng.choice(TERMS, rng.integers(1, 40), p=share / share.sum()).tolist() for _ in range(size)
    ]
    ids = rng.permutation(size)
    index = make_index(documents, ids)
    everything = index.scores(query)
    expected = sorted(np.flatnonzero(everything), key=lambda n: (-everything[n], ids[n]))[:count]
    for _ in range(2):  # nothing is left behind by a query
        found, scores = index.best(query, count, long_list=long_list)
        assert found.tolist() == expected
        assert scores.tolist() == everything[expected].tolist()


def test_documents_without_a_word_cannot_be_indexed_alone():
    with pytest.raises(ValueError, match="no document holds a word"):
        make_index([[], []], [0, 1])
