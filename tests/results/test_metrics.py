"""The record of a run: complete, and the same whether or not the run was interrupted."""

import json
import math

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from atod_jax.results.metrics import Muted, Writer, read_records


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_events(folder):
    """Events of all TensorBoard files: length u64, crc u32, payload, crc u32, repeated."""
    events = []
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            events.append(Event.FromString(data[at + 12 : at + 12 + size]))
            at += 16 + size
    return events


def record(folder, steps, *, resume_step=0):
    writer = Writer(folder, resume_step=resume_step)
    for step in steps:
        writer.scalars(step, {"train/loss": 0.5**step, "eval/success": step / 8})
    writer.close()


def test_a_line_is_on_disk_at_once_and_holds_the_numbers(tmp_path):
    writer = Writer(tmp_path / "runs" / "a")
    writer.scalars(3, {"train/loss": np.float32(0.25), "train/rows": 7})
    expected = [{"step": 3, "train/loss": 0.25, "train/rows": 7.0}]
    assert read_lines(tmp_path / "runs" / "a" / "metrics.jsonl") == expected
    writer.close()


def test_tensorboard_holds_the_same_numbers(tmp_path):
    record(tmp_path, range(4))
    events = read_events(tmp_path / "tensorboard")
    found = {(e.step, v.tag): v.simple_value for e in events for v in e.summary.value}
    assert found[2, "train/loss"] == 0.25
    assert found[3, "eval/success"] == 0.375
    assert len(found) == 8


@pytest.mark.parametrize("resume_step", [0, 1, 3, 5])
def test_a_resumed_record_equals_an_undisturbed_one(tmp_path, resume_step):
    record(tmp_path / "whole", range(6))
    record(tmp_path / "resumed", range(5))
    with (tmp_path / "resumed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "train/lo')  # killed while writing
    record(tmp_path / "resumed", range(resume_step, 6), resume_step=resume_step)
    whole, resumed = (tmp_path / name / "metrics.jsonl" for name in ("whole", "resumed"))
    assert resumed.read_bytes() == whole.read_bytes()


def test_tensorboard_is_told_where_the_run_resumes(tmp_path):
    record(tmp_path, range(4))
    record(tmp_path, range(2, 4), resume_step=2)
    starts = [e.step for e in read_events(tmp_path / "tensorboard") if e.HasField("session_log")]
    assert starts == [2]
    record(tmp_path, range(1))
    assert {e.step for e in read_events(tmp_path / "tensorboard")} == {0}


@pytest.mark.parametrize("line", ["hello", "[1]", '{"step": null}', '{"step": 1e999}', "[" * 10**5])
def test_a_line_that_is_no_record_stops_the_run(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is not .*; delete the line"):
        Writer(tmp_path, resume_step=1)
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 3


def test_a_line_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": 2, "\xff": 1}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is not .*; delete the line"):
        Writer(tmp_path, resume_step=3)


def test_steps_that_are_missing_are_told_of(tmp_path, capsys):
    record(tmp_path, [0, 2, 2, 3])
    Writer(tmp_path, resume_step=4).close()
    assert "no record of 1 of the 4 steps before this one, step 1 the first" in (
        capsys.readouterr().err
    )
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 0, "eval/success": 0.5}\n{"step": 1, "loss/total": 1.0}\n'
    )
    Writer(tmp_path, resume_step=2).close()
    assert "no record of 1 of the 2 steps before this one, step 0" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").unlink()
    Writer(tmp_path, resume_step=2).close()
    assert "no record of 2 of the 2 steps" in capsys.readouterr().err


def test_values_that_are_not_finite_are_null_and_named(tmp_path):
    writer = Writer(tmp_path)
    writer.scalars(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.0})
    writer.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert "NaN" not in line
    assert "Infinity" not in line
    odd = {"a": "nan", "b": "inf", "c": "-inf"}
    assert json.loads(line) == {
        "step": 1, "a": None, "b": None, "c": None, "d": 1.0, "non_finite": odd
    }  # fmt: skip


@pytest.mark.parametrize("key", ["step", "non_finite"])
def test_reserved_names_are_refused(tmp_path, key):
    writer = Writer(tmp_path)
    with pytest.raises(ValueError, match=f"{key}.* reserved; rename"):
        writer.scalars(1, {key: 1.0})
    writer.close()


def test_a_record_that_is_being_written_can_be_read(tmp_path):
    assert read_records(tmp_path) == []
    record(tmp_path, range(2))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "train/lo')
    assert [r["train/loss"] for r in read_records(tmp_path)] == [1.0, 0.5]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 3 is not a metrics record"):
        read_records(tmp_path)


def test_the_other_processes_have_a_writer_of_the_same_shape(tmp_path):
    public = [{n for n in vars(c) if not n.startswith("_")} for c in (Writer, Muted)]
    assert public[0] == public[1]
    muted = Muted()
    muted.scalars(1, {"a": 1.0})
    muted.close()
    assert list(tmp_path.iterdir()) == []
