"""How often the search engine finds the recorded questions' gold passages among its first three."""

import gzip
import json
from collections import defaultdict

import pytest

from atod_jax.envs.searchqa import jsonl, retrieve

EXPECTED = {
    "triviaqa": 0.934, "popqa": 0.870, "nq": 0.850, "2wikimultihopqa": 0.746,
    "hotpotqa": 0.660, "musique": 0.428, "bamboogle": 0.242,
}  # fmt: skip
SINGLE_HOP = {"triviaqa", "popqa", "nq"}  # any gold passage will do; else the share found counts
ENOUGH = 100  # questions; below, chance moves the figure too far
TOLERANCE = 0.08


@pytest.fixture(scope="module")
def index(data_dir):
    return retrieve.load(jsonl.find(data_dir / "searchqa", "corpus.jsonl"))


@pytest.fixture(scope="module")
def questions(data_dir):
    path = jsonl.find(data_dir / "searchqa", "questions.jsonl")
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def recalls(index, questions) -> dict[str, list[float]]:
    """Per data set, the recall of every question that has gold passages."""
    found = defaultdict(list)
    asked = [q for q in questions if q["gold_ids"]]
    results = index.search([q["question"] for q in asked], 3)
    for question, hits in zip(asked, results, strict=True):
        gold, ids = set(question["gold_ids"]), {hit.id for hit in hits}
        share = len(gold & ids) / len(gold)
        name = question["dataset"]
        found[name].append(float(share > 0) if name in SINGLE_HOP else share)
    return found


def test_recall_is_that_of_a_known_good_index(index, questions):
    found = recalls(index, questions)
    print("\ndata set           questions  recall@3  expected")
    for name, values in sorted(found.items()):
        mean = sum(values) / len(values)
        print(f"{name:18} {len(values):9} {mean:9.3f} {EXPECTED.get(name, float('nan')):9.3f}")
    checked = {name: sum(v) / len(v) for name, v in found.items() if len(v) >= ENOUGH}
    assert checked
    for name in checked.keys() & EXPECTED:
        assert abs(checked[name] - EXPECTED[name]) <= TOLERANCE, name


def test_a_batch_answers_every_query_as_if_it_were_alone(index, questions):
    texts = [q["question"] for q in questions[::10]]
    assert index.search(texts, 3) == [index.search([text], 3)[0] for text in texts]
