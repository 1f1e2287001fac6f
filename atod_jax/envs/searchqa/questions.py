"""Questions with their accepted answers, and the files they come from."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

from atod_jax import texts
from atod_jax.envs import jsonl, order, prepared

SPLITS = ("train", "dev", "test")


class Question(NamedTuple):
    """One question; `dataset` is the set it comes from, which results are grouped by."""

    id: str
    dataset: str
    split: str
    question: str
    answers: tuple[str, ...]


@functools.cache
def load(folder: str, split: str) -> tuple[Question, ...]:
    """The questions of a split: of questions.jsonl[.gz], or of a prepared TFDS folder, in the
    order of `order.shuffled`.

    Raises:
      FileNotFoundError: neither is there.
      ValueError: a damaged file, with file and line, a split without questions, or an id twice.
    """
    path = jsonl.find(folder, "questions.jsonl")
    if path:
        everything = list(jsonl.read(path, question_of))
        found = tuple(q for q in everything if q.split == split)
        there = sorted({q.split for q in everything})
    elif prepared.is_prepared(folder):
        there = prepared.splits(folder)
        records = enumerate(prepared.records(folder, split), 1)
        found = tuple(
            jsonl.build_at(f"{folder}, record {n} of {split!r}", r, question_of) for n, r in records
        )
    else:
        raise FileNotFoundError(
            f"env.searchqa.data={folder!r}: no questions.jsonl, questions.jsonl.gz or prepared TFDS"
            " data set (dataset_info.json) there"
        )
    if not found:
        raise ValueError(
            f"{path or Path(folder)} has no questions in split {split!r}; it has those of:"
            f" {', '.join(there) or 'no split at all'}"
        )
    try:
        return order.shuffled(found, lambda question: question.id)
    except ValueError as error:
        raise ValueError(f"{path or folder}, split {split!r}: {error}") from None


def question_of(record: dict[str, Any]) -> Question:
    """The question of a record {id, dataset, split, question, answers}.

    Raises:
      KeyError: a field is missing.
      ValueError: a field is empty or of the wrong type, or the split is unknown.
    """
    answers = record["answers"]
    if not isinstance(answers, list) or not answers or not all(map(_is_filled, answers)):
        shown = texts.one_line(repr(answers), longest=80)
        raise ValueError(f"answers={shown}: give a list of at least one answer")
    fields = {key: jsonl.filled(record, key) for key in ("id", "dataset", "split", "question")}
    if fields["split"] not in SPLITS:
        raise ValueError(f"split={fields['split'][:80]!r}: use one of {', '.join(SPLITS)}")
    return Question(**fields, answers=tuple(answers))


def _is_filled(text: Any) -> bool:
    return isinstance(text, str) and bool(text.strip())
