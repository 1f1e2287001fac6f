"""BM25 against its formula, its ties and edges; corpus files, good and damaged."""

import gzip
import json
import math

import pytest
import Stemmer

from atod_jax.envs.bm25 import K1, STOP_WORDS, B
from atod_jax.envs.searchqa.retrieve import WORD, Bm25, Passage, read_passages

TEXTS = [
    '"Rivers"\nRivers run to the sea, and the sea is salty.',
    '"Sea"\nThe sea covers most of the globe.',
    '"Mountains"\nMountains are high. A river springs from most mountains.',
    '"Deserts"\nDeserts are dry.',
]
PASSAGES = [Passage(f"p{n}", text) for n, text in enumerate(TEXTS)]


def stems(text: str) -> list[str]:
    stem = Stemmer.Stemmer("english").stemWord
    return [stem(w) for w in WORD.findall(text.lower()) if w not in STOP_WORDS]


def formula(query: str, number: int) -> float:
    """BM25 as it is written in books, with Lucene's idf."""
    docs = [stems(text) for text in TEXTS]
    average = sum(map(len, docs)) / len(docs)
    score = 0.0
    for term in stems(query):
        holding = sum(term in doc for doc in docs)
        idf = math.log(1 + (len(docs) - holding + 0.5) / (holding + 0.5))
        count = docs[number].count(term)
        score += idf * count / (count + K1 * (1 - B + B * len(docs[number]) / average))
    return score


@pytest.mark.parametrize(
    "query", ["sea", "the salty rivers", "most mountains river", "sea sea dry"]
)
def test_scores_are_those_of_the_formula(query):
    (hits,) = Bm25(PASSAGES).search([query], len(PASSAGES))
    expected = {f"p{n}": formula(query, n) for n in range(len(TEXTS))}
    assert {h.id: h.score for h in hits} == pytest.approx(
        {name: score for name, score in expected.items() if score > 0}, rel=1e-5
    )
    assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)


def test_equal_scores_keep_the_order_of_the_corpus():
    index = Bm25([Passage(str(n), "the same words") for n in range(50)])
    for topk in (1, 3, 50):
        assert [h.id for h in index.search(["words"], topk)[0]] == [str(n) for n in range(topk)]


@pytest.mark.parametrize("query", ["", "   ", "the of", "zzz", "\x00", "é"])
def test_a_query_without_a_known_word_finds_nothing(query):
    assert Bm25(PASSAGES).search([query], 3) == [[]]


def test_a_huge_query_is_answered():
    (hits,) = Bm25(PASSAGES).search(["sea " * 25_000], 3)
    assert hits[0].id == "p1"


def test_both_forms_of_a_corpus_read_alike(tmp_path):
    plain, packed = tmp_path / "corpus.jsonl", tmp_path / "corpus.jsonl.gz"
    plain.write_text(json.dumps({"id": 7, "title": "Zoë", "text": "was here"}), encoding="utf-8")
    with gzip.open(packed, "wt", encoding="utf-8") as file:
        file.write(json.dumps({"id": "7", "contents": '"Zoë"\nwas here'}) + "\n")
    assert read_passages(plain) == read_passages(packed) == [Passage("7", '"Zoë"\nwas here')]


GOOD = b'{"id": "0", "title": "t", "text": "x"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD + GOOD[:20], "corpus.jsonl, line 2: not JSON"),
        (
            GOOD + b'{"id": "1", "title": "\xff\xfe", "text": "x"}\n',
            "corpus.jsonl: damaged or cut off .*utf-8",
        ),
        (GOOD + b'{"id": "1", "title": "t"}\n', "line 2: field 'text' is missing"),
        (GOOD + b'{"id": "1", "title": "t", "text": 5}\n', "line 2: field 'text' is int"),
        (b"[1]\n", "line 1: expected an object, found list"),
        (b"", "has no passages"),
    ],
)
def test_a_damaged_corpus_is_named(content, message, tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_passages(path)


def test_a_truncated_or_missing_file_is_named(tmp_path):
    path = tmp_path / "corpus.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD * 3)[:-12])
    with pytest.raises(ValueError, match=r"corpus\.jsonl\.gz: damaged or cut off after line"):
        read_passages(path)
    path.write_bytes(GOOD)
    with pytest.raises(ValueError, match=r"corpus\.jsonl\.gz: damaged or cut off after line 0"):
        read_passages(path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl"):
        read_passages(tmp_path / "nowhere.jsonl")
