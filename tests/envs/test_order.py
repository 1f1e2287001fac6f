"""Which tasks are the first n: a fair sample, whoever wrote the file."""

import gzip
import json
import lzma
from collections import Counter

import pytest

from atod_jax.envs import alfworld, order, searchqa

KINDS = ["one", "two", "three", "four", "five", "six", "seven"]


def questions(count=70):
    """Sorted by set, as question files are."""
    return [
        {
            "id": f"{kind}/{n}", "dataset": kind, "split": "test", "question": f"{kind} {n}?",
            "answers": ["yes"],
        }
        for kind in KINDS for n in range(count)
    ]  # fmt: skip


def write(folder, records):
    folder.mkdir()
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "questions.jsonl").write_text(text, encoding="utf-8")
    return searchqa.Config(data=str(folder))


def test_the_first_questions_are_a_fair_sample_in_any_order_of_the_file(tmp_path):
    forward, backward = (
        searchqa.tasks(write(tmp_path / name, records), "test")
        for name, records in (("a", questions()), ("b", questions()[::-1]))
    )
    assert [t.id for t in forward] == [t.id for t in backward]
    assert sorted(t.id for t in forward) == sorted(q["id"] for q in questions())
    first = Counter(t.kind for t in forward[:140])  # 20 of each are expected, 3.5 is one deviation
    assert set(first) == set(KINDS)
    assert 9 <= min(first.values()) <= max(first.values()) <= 31
    assert [t.id for t in forward[:3]] == ["three/1", "two/25", "three/7"]  # for good


def test_an_id_that_occurs_twice_is_named_before_anything_is_played(tmp_path):
    cfg = write(tmp_path / "a", [*questions(2), questions(2)[3]])
    with pytest.raises(ValueError, match=r"questions\.jsonl, split 'test': the id 'two/1' occurs"):
        searchqa.tasks(cfg, "test")
    assert order.shuffled([], str) == ()


@pytest.mark.parametrize("split", ["train", "valid_seen", "valid_unseen"])
def test_recorded_games_and_questions_begin_with_all_kinds(data_dir, split):
    path = data_dir / "alfworld" / "games.jsonl.xz"
    games = alfworld.tasks(alfworld.Config(games=str(path)), split)
    assert len({t.kind for t in games[:32]}) == 6
    with lzma.open(path, "rt") as lines:
        there = {g["id"] for g in map(json.loads, lines)
                 if g["split"] == split and g["candidate_plan"] is not None}  # fmt: skip
    assert {t.id for t in games} == there
    found = searchqa.tasks(searchqa.Config(data=str(data_dir / "searchqa")), "test")
    with gzip.open(data_dir / "searchqa" / "questions.jsonl.gz", "rt") as lines:
        kinds = {q["dataset"] for q in map(json.loads, lines) if q["split"] == "test"}
    assert {t.kind for t in found[:128]} == kinds
