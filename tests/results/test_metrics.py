"""The record of a run: complete, readable, and the same whether or not the run was interrupted."""

import dataclasses
import io
import json
import math

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from atod_jax.records import StopReason, Task, Trajectory, Turn
from atod_jax.results.metrics import Progress, Writer


def make_episode(name: str, turns: int, *, success: bool = True) -> Trajectory:
    def turn(k: int) -> Turn:
        return Turn(
            prompt=np.arange(5, dtype=np.int32),
            action=np.arange(k + 1, dtype=np.int32),
            logp=np.zeros(k + 1, np.float32),
            observation=f"You see a shelf.\nIt holds {k} cups.",
            response=f"<think>ü</think> take cup {k}",
            command=f"take cup {k}",
            valid=k != 1,
            reward=float(k == turns - 1 and success),
        )

    task = Task(id=name, kind="pick", payload=None)
    stop = StopReason.done if success else StopReason.max_turns
    turn_list = tuple(turn(k) for k in range(turns))
    return Trajectory(task=task, group=0, turns=turn_list, success=success, stop=stop)


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


def test_a_line_that_is_no_record_stops_the_run(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nhello\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is not .*; delete the line"):
        Writer(tmp_path, resume_step=1)
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 3


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


def test_transcripts_hold_every_turn_with_its_columns(tmp_path):
    writer = Writer(tmp_path)
    episodes = [make_episode("game-1", 2), make_episode("game-2", 1, success=False)]
    columns = [{"d": [0.5, 1.25], "w": [1.0, math.nan]}, {"d": [2.0], "w": [0.75]}]
    writer.transcripts(12, "train", episodes, columns)
    writer.close()

    first, second = read_lines(tmp_path / "transcripts" / "000012-train.jsonl")
    assert (first["task"], first["success"], first["total_reward"]) == ("game-1", True, 1.0)
    assert (second["stop"], second["total_reward"]) == ("max_turns", 0.0)
    assert first["turns"][1] == {
        "observation": "You see a shelf.\nIt holds 1 cups.",
        "response": "<think>ü</think> take cup 1",
        "command": "take cup 1",
        "valid": False,
        "reward": 1.0,
        "tokens": 2,
        "d": 1.25,
        "w": None,
    }

    text = (tmp_path / "transcripts" / "000012-train.txt").read_text(encoding="utf-8")
    assert "task game-1 (pick), group 0: solved after 2 turns, stopped by done, reward 1.0" in text
    assert "task game-2 (pick), group 0: not solved after 1 turns, stopped by max_turns" in text
    assert "--- turn 2: 2 tokens  reward 1  d 1.25  w not finite  INVALID\n" in text
    assert "sees | You see a shelf.\n     | It holds 1 cups.\nsays | <think>ü</think>" in text
    assert "does | take cup 1\n" in text


def test_replayed_turns_are_marked_and_have_no_columns(tmp_path):
    episode = make_episode("a", 2)
    replayed = dataclasses.replace(episode.turns[0], replayed=True)
    episode = dataclasses.replace(episode, turns=(replayed, episode.turns[1]))
    writer = Writer(tmp_path)
    writer.transcripts(1, "eval", [episode], [{"d": [math.nan, 0.5]}])
    writer.close()
    (line,) = read_lines(tmp_path / "transcripts" / "000001-eval.jsonl")
    assert [turn.get("replayed", False) for turn in line["turns"]] == [True, False]
    assert [turn["d"] for turn in line["turns"]] == [None, 0.5]
    text = (tmp_path / "transcripts" / "000001-eval.txt").read_text(encoding="utf-8")
    first, second = (x for x in text.splitlines() if x.startswith("--- turn"))
    assert first == "--- turn 1: 1 tokens  replayed for the student"
    assert "d 0.5" in second


def test_transcripts_of_a_repeated_step_replace_the_old_ones(tmp_path):
    for name in ("old", "new"):
        writer = Writer(tmp_path, resume_step=4)
        writer.transcripts(4, "eval", [make_episode(name, 1)])
        writer.close()
    (line,) = read_lines(tmp_path / "transcripts" / "000004-eval.jsonl")
    assert line["task"] == "new"
    files = sorted(f.name for f in (tmp_path / "transcripts").iterdir())
    assert files == ["000004-eval.jsonl", "000004-eval.txt"]


def test_a_column_must_match_the_turns(tmp_path):
    writer = Writer(tmp_path)
    with pytest.raises(ValueError, match="column 'd' has 1 values for 2 turns of task a"):
        writer.transcripts(1, "x", [make_episode("a", 2)], [{"d": [1.0]}])
    writer.close()


def test_text_is_kept_beside_the_numbers(tmp_path):
    writer = Writer(tmp_path)
    writer.text(0, "config", "lr = 1e-3\n")
    writer.close()
    assert (tmp_path / "text" / "000000-config.txt").read_text() == "lr = 1e-3\n"


def test_progress_without_a_terminal_prints_a_line_every_few_seconds():
    """6 s per step, from step 10: a line at 6 s, then after 15 s or more, and the last."""
    now, out = [0.0], io.StringIO()
    progress = Progress(
        20, start=10, description="atod", show=("a", "absent"), stream=out, clock=lambda: now[0]
    )
    for done in range(11, 21):
        now[0] += 6.0
        progress.advance({"a": done / 10, "b": 1.0})
    progress.close()
    assert out.getvalue().splitlines() == [
        "step 11/20, 0:54 left  atod  a 1.1",
        "step 14/20, 0:36 left  atod  a 1.4",
        "step 17/20, 0:18 left  atod  a 1.7",
        "step 20/20, 0:00 left  atod  a 2",
    ]


def test_progress_on_a_terminal_draws_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    out = Terminal()
    progress = Progress(4, start=3, show=("success",), stream=out)
    progress.advance({"success": 0.5})
    progress.close()
    progress.close()
    assert "4/4" in out.getvalue()
    assert "success 0.5" in out.getvalue()
