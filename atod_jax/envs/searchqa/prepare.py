"""Turns the official question sets into one TFDS data set, without TensorFlow.

    python -m atod_jax.envs.searchqa.prepare --source=FOLDER --out=DIR

FOLDER holds what a user downloaded: NAME/SPLIT.jsonl as in FlashRAG_datasets, with records
{id, question, golden_answers}, and SPLIT.parquet as in nq_hotpotqa_train, which needs pyarrow and
has `data_source` besides. Validation files are called dev. The result can be read from DIR by
`tfds.builder_from_directory` and be named as env.searchqa.data.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from atod_jax.envs import jsonl, prepared
from atod_jax.envs.searchqa import questions

FIELDS: dict[str, type] = {
    **dict.fromkeys(("id", "dataset", "split", "question"), str),
    "answers": list,
}


def find_files(source: str | Path) -> dict[str, list[Path]]:
    """Question files per split, in name order.

    Raises:
      FileNotFoundError: the folder has none.
    """
    names = {"train": ("train",), "dev": ("dev", "validation"), "test": ("test",)}
    found = {
        split: sorted(
            path
            for path in Path(source).glob("**/*")
            if path.stem in stems and path.suffix in (".jsonl", ".parquet")
        )
        for split, stems in names.items()
    }
    if not any(found.values()):
        raise FileNotFoundError(
            f"no question files below {str(source)!r}; expected NAME/train.jsonl and the like"
        )
    return {split: paths for split, paths in found.items() if paths}


def read_files(paths: Sequence[Path], split: str) -> Iterator[questions.Question]:
    """The questions of several files (see `read_file`)."""
    for path in paths:
        yield from read_file(path, split)


def read_file(path: Path, split: str) -> Iterator[questions.Question]:
    """The questions of one file; the folder's name is the set, where records do not say.

    Raises:
      ValueError: a damaged file or record, with file and line (row of a parquet file).
      ImportError: a parquet file, and pyarrow is missing.
    """

    def build(record: dict[str, Any]) -> questions.Question:
        dataset = record.get("data_source") or path.parent.name
        return questions.question_of(
            {
                "id": f"{dataset}/{record['id']}",
                "dataset": dataset,
                "split": split,
                "question": record["question"],
                "answers": record["golden_answers"],
            }
        )

    if path.suffix == ".jsonl":
        yield from jsonl.read(path, build)
        return
    import pyarrow.parquet

    for row, record in enumerate(pyarrow.parquet.read_table(path).to_pylist(), 1):
        yield jsonl.build_at(f"{path}, row {row}", record, build)


def prepare(source: str | Path, out: str | Path) -> Path:
    """Builds the data set below `out`; returns the folder to name as env.searchqa.data."""
    questions_of = {
        split: (q._asdict() | {"answers": list(q.answers)} for q in read_files(paths, split))
        for split, paths in find_files(source).items()
    }
    return prepared.write("search_qa", FIELDS, splits=questions_of, out=out)


if __name__ == "__main__":
    prepared.main(prepare, source="source")
