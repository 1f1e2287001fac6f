"""Official question sets through TFDS: prepared from files, read back without TensorFlow."""

import json
import subprocess
import sys

import pytest

from atod_jax.envs import searchqa
from atod_jax.envs.searchqa import prepare


def write(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")


def record(number, **changes):
    question = {"id": str(number), "question": f"question {number}?"}
    return question | {"golden_answers": [f"Zoë {number}", "x"]} | changes


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    write(folder / "nq" / "train.jsonl", *(record(n) for n in range(30)))
    write(folder / "nq" / "test.jsonl", record(0))
    write(folder / "hotpotqa" / "dev.jsonl", record(0), record(1))
    return folder


def test_prepared_sets_are_playable(source, tmp_path):
    folder = prepare.prepare(source, tmp_path / "out")
    cfg = searchqa.Config(data=str(folder))
    tasks = searchqa.tasks(cfg, "train")
    assert {t.id for t in tasks} == {f"nq/{n}" for n in range(30)}
    task = next(t for t in tasks if t.id == "nq/7")
    assert task.kind == "nq"
    assert task.payload == ("nq/7", "nq", "train", "question 7?", ("Zoë 7", "x"))
    assert {t.kind for t in searchqa.tasks(cfg, "dev")} == {"hotpotqa"}
    assert [t.id for t in tasks] == [t.id for t in searchqa.tasks(cfg, "train")]


def test_a_split_that_was_not_prepared_is_named(source, tmp_path):
    (source / "nq" / "test.jsonl").unlink()
    cfg = searchqa.Config(data=str(prepare.prepare(source, tmp_path / "out")))
    with pytest.raises(
        ValueError, match="no questions in split 'test'; it has those of: dev, train"
    ):
        searchqa.tasks(cfg, "test")


def test_reading_brings_no_tensorflow(source, tmp_path):
    folder = prepare.prepare(source, tmp_path / "out")
    code = (
        "import sys; from atod_jax.envs import searchqa;"
        f"print(len(searchqa.tasks(searchqa.Config(data={str(folder)!r}), 'train')),"
        "'tensorflow' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["30", "False"]


def test_parquet_files_name_their_sources(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    rows = [record(n, data_source=source) for n, source in enumerate(("nq", "hotpotqa"))]
    path = tmp_path / "train.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert [q.id for q in prepare.read_file(path, "train")] == ["nq/0", "hotpotqa/1"]
    parquet.write_table(pyarrow.Table.from_pylist([record(0, golden_answers=[])]), path)
    with pytest.raises(ValueError, match=r"train\.parquet, row 1: answers=\[\]"):
        list(prepare.read_file(path, "train"))


def test_bad_sources_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no question files below"):
        prepare.prepare(tmp_path, tmp_path / "out")
    path = tmp_path / "nq" / "train.jsonl"
    write(path, record(0), {"id": "1", "question": "?"})
    with pytest.raises(
        ValueError, match=r"train\.jsonl, line 2: field 'golden_answers' is missing"
    ):
        list(prepare.read_file(path, "train"))
