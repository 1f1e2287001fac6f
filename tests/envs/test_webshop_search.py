"""Search: Lucene's words, weights and order, found without scoring everything."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import webshop_records
from hypothesis import given, settings
from hypothesis import strategies as st

from atod_jax.envs.webshop import search
from atod_jax.envs.webshop.analyser import analyse, words
from atod_jax.envs.webshop.indexing import IndexBuilder
from atod_jax.envs.webshop.porter import stem
from atod_jax.envs.webshop.search import HITS, Index, kept_length


def make_index(texts, ids=None) -> Index:
    arrays: dict[str, np.ndarray] = {}
    builder = IndexBuilder()
    for text in texts:
        builder.add(text)
    ids = np.array(ids if ids is not None else [f"{i:08d}" for i in range(len(texts))], "S")
    builder.finish(ids, lambda name, n, dtype: arrays.setdefault(name, np.empty(n, dtype)))
    return Index(arrays)


# --------------------------------------------------------------------------------- recorded Lucene


@pytest.fixture(scope="module")
def products(data_dir):
    return webshop_records.rows(data_dir / "webshop", "products")


@pytest.fixture(scope="module")
def queries(data_dir):
    return webshop_records.rows(data_dir / "webshop", "lucene_top50")


def test_every_recorded_document_has_the_recorded_tokens(data_dir, products):
    tokens = webshop_records.rows(data_dir / "webshop", "lucene_doc_tokens")
    texts = {row["asin"]: row["indexed_contents"] for row in products}
    assert len(tokens) > 0
    assert [t["asin"] for t in tokens if analyse(texts[t["asin"]]) != t["tokens"]] == []


def test_every_recorded_query_has_the_recorded_tokens(queries):
    assert len(queries) > 0
    assert [q["query"] for q in queries if analyse(q["query"]) != q["query_tokens"]] == []


def test_every_recorded_ranking(products, queries):
    ids = [row["asin"] for row in products]
    index = make_index([row["indexed_contents"] for row in products], ids)
    for query in queries:
        found = index.search(query["query"])
        assert [ids[number] for number in found] == query["hits"], query["query"]
        scores = index.scores(analyse(query["query"]))[list(found)]
        np.testing.assert_allclose(scores, query["scores"], atol=6e-5)  # recorded with 4 digits


# ---------------------------------------------------------------------------------------- analyser


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The boy's and girls' shoes", ["boi", "girl", "shoe"]),
        ("16x16 inch 3.5mm 1,000", ["16x16", "inch", "3.5mm", "1,000"]),
        ("wi-fi t_shirt a:b", ["wi", "fi", "t_shirt", "a:b"]),
        ("★★ café® 👍🏽", ["★", "★", "café", "®", "👍🏽"]),
        ("漢字 かな カタカナ", ["漢", "字", "か", "な", "カタカナ"]),
        ("", []),
    ],
)
def test_words_become_terms(text, expected):
    assert analyse(text) == expected


def test_very_long_words_are_cut():
    assert [len(word) for word in words("x" * 600)] == [255, 255, 90]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("caresses", "caress"), ("ponies", "poni"), ("ties", "ti"), ("feed", "feed"),
        ("agreed", "agre"), ("plastered", "plaster"), ("motoring", "motor"),
        ("conflated", "conflat"),
        ("hopping", "hop"), ("falling", "fall"), ("filing", "file"), ("happy", "happi"),
        ("relational", "relat"), ("conformabli", "conform"), ("vietnamization", "vietnam"),
        ("triplicate", "triplic"), ("hopeful", "hope"), ("adoption", "adopt"),
        ("probate", "probat"),
        ("controll", "control"), ("roll", "roll"), ("archaeologi", "archaeolog"), ("is", "is"),
    ],
)  # fmt: skip
def test_stems(word, expected):
    assert stem(word) == expected


# ----------------------------------------------------------------------------------------- ranking


def test_lengths_keep_four_significant_bits():
    assert kept_length(np.array([0, 23, 24, 39, 40, 41, 56, 59, 1000])).tolist() == [
        0, 23, 24, 39, 40, 40, 56, 56, 984
    ]  # fmt: skip


def brute_force(index: Index, terms, ids) -> list[int]:
    scores = index.scores(terms)
    found = [number for number in range(len(ids)) if scores[number] > 0]
    return sorted(found, key=lambda number: (-scores[number], ids[number]))[:HITS]


WORDS = [f"w{i}x" for i in range(40)]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), query=st.lists(st.sampled_from(WORDS), max_size=9))
def test_hits_are_those_of_scoring_everything(seed, query):
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, len(WORDS) + 1)
    count = int(rng.integers(1, 400))
    texts = [
        " ".join(rng.choice(WORDS, rng.integers(1, 60), p=share / share.sum()))
        for _ in range(count)
    ]
    ids = [f"{number:06d}" for number in rng.permutation(count)]
    index = make_index(texts, ids)
    before = search._LONG_LIST
    search._LONG_LIST = 10  # so that small lists take the way of long ones too
    try:
        assert list(index.hits(query)) == brute_force(index, query, ids)
        assert list(index.hits(query)) == brute_force(index, query, ids)  # nothing is left behind
    finally:
        search._LONG_LIST = before


def test_queries_in_threads_do_not_disturb_each_other():
    rng = np.random.default_rng(0)
    index = make_index([" ".join(rng.choice(WORDS, 30)) for _ in range(3000)])
    asked = [list(rng.choice(WORDS, 3)) for _ in range(200)]
    expected = [index.hits(query) for query in asked]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(index.hits, asked)) == expected


def test_ties_go_to_the_smaller_id():
    index = make_index(["red shoe", "red shoe", "red shoe"], ["B3", "B1", "B2"])
    assert index.search("shoe") == (1, 2, 0)


def test_nothing_found():
    index = make_index(["red shoe"])
    assert index.search("") == index.search("the of") == index.search("boot") == ()


def test_a_document_without_words_counts_for_nothing():
    texts = ["red shoe", "blue shoe"]
    plain, with_empty = make_index(texts), make_index([*texts, "..."])
    assert with_empty.scores(["shoe"]).tolist() == [*plain.scores(["shoe"]), 0]
    with pytest.raises(ValueError, match="no document holds a word"):
        make_index(["..."])


def test_batches_of_documents_make_one_index(monkeypatch):
    texts = [f"word{i % 7} word{i % 3} common" for i in range(50)]
    whole = make_index(texts)
    monkeypatch.setattr("atod_jax.envs.webshop.indexing._CHUNK", 8)
    for query in ("word1", "common word2 word5", "word0 word0 word6"):
        assert make_index(texts).search(query) == whole.search(query)
