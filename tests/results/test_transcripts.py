"""Transcripts: every turn with its numbers, for programs and for people."""

import dataclasses
import gzip
import json
import math

import numpy as np
import pytest

from atod_jax.records import Instead, Speller, StopReason, Task, Trace, Trajectory, Turn
from atod_jax.results.transcripts import (
    episode_text,
    records,
    write_records,
    write_transcripts,
)


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
            problem="not admissible" if k == 1 else "",
        )

    task = Task(id=name, kind="pick", payload=None)
    stop = StopReason.done if success else StopReason.max_turns
    turn_list = tuple(turn(k) for k in range(turns))
    return Trajectory(task=task, group=0, turns=turn_list, success=success, stop=stop)


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_transcripts_hold_every_turn_with_its_columns(tmp_path):
    episodes = [make_episode("game-1", 2), make_episode("game-2", 1, success=False)]
    traces = [Trace({"d": [0.5, 1.25], "w": [1.0, math.nan]}), Trace({"d": [2.0], "w": [0.75]})]
    write_transcripts(tmp_path, 12, "train", episodes=episodes, traces=traces)

    first, second = read_lines(tmp_path / "transcripts" / "000012-train.jsonl")
    assert (first["task"], first["success"], first["total_reward"]) == ("game-1", True, 1.0)
    assert (second["stop"], second["total_reward"]) == ("max_turns", 0.0)
    assert first["turns"][1] == {
        "observation": "You see a shelf.\nIt holds 1 cups.",
        "response": "<think>ü</think> take cup 1",
        "command": "take cup 1",
        "valid": False,
        "problem": "not admissible",
        "reward": 1.0,
        "tokens": 2,
        "d": 1.25,
        "w": None,
    }

    text = (tmp_path / "transcripts" / "000012-train.txt").read_text(encoding="utf-8")
    assert "task game-1 (pick), group 0: solved after 2 turns, stopped by done, reward 1.0" in text
    assert "task game-2 (pick), group 0: not solved after 1 turns, stopped by max_turns" in text
    assert "--- turn 2: 2 tokens  reward 1  d 1.25  w not finite  INVALID  not admissible\n" in text
    assert "sees | You see a shelf.\n     | It holds 1 cups.\nsays | <think>ü</think>" in text
    assert "does | take cup 1\n" in text


def test_tokens_are_spelled_with_all_that_is_known_of_them(tmp_path):
    speller = Speller(lambda ids: f"{len(ids)} ids", lambda ids: [f"<{i}>" for i in ids])
    instead = [[], [Instead(1, ((7, -0.123456), (8, -2.5)))]]
    tokens = {"teacher": [np.float32([-1.23456]), np.float32([-0.5, -np.inf])]}
    episode = make_episode("a", 2)
    trace = Trace({}, tokens, instead)
    write_transcripts(tmp_path, 1, "t", episodes=[episode], traces=[trace], speller=speller)
    (line,) = read_lines(tmp_path / "transcripts" / "000001-t.jsonl")
    assert line["turns"][0]["prompt"] == "5 ids"
    assert "instead" not in line["turns"][0]
    second = line["turns"][1]
    assert second["pieces"] == ["<0>", "<1>"]
    assert second["streams"] == {"sampler": [0.0, 0.0], "teacher": [-0.5, None]}
    assert second["instead"] == [[1, [["<7>", -0.1235], ["<8>", -2.5]]]]

    write_records(tmp_path / "all.jsonl.gz", records([episode, episode], None, speller))
    lines = gzip.decompress((tmp_path / "all.jsonl.gz").read_bytes()).decode().splitlines()
    assert [json.loads(x)["turns"][0]["streams"] for x in lines] == [{"sampler": [0.0]}] * 2


def test_replayed_turns_are_marked_and_have_no_columns(tmp_path):
    episode = make_episode("a", 2)
    replayed = dataclasses.replace(episode.turns[0], replayed=True)
    episode = dataclasses.replace(episode, turns=(replayed, episode.turns[1]))
    write_transcripts(
        tmp_path, 1, "eval", episodes=[episode], traces=[Trace({"d": [math.nan, 0.5]})]
    )
    (line,) = read_lines(tmp_path / "transcripts" / "000001-eval.jsonl")
    assert [turn.get("replayed", False) for turn in line["turns"]] == [True, False]
    assert [turn["d"] for turn in line["turns"]] == [None, 0.5]
    text = (tmp_path / "transcripts" / "000001-eval.txt").read_text(encoding="utf-8")
    first, second = (x for x in text.splitlines() if x.startswith("--- turn"))
    assert first == "--- turn 1: 1 tokens  replayed for the student"
    assert "d 0.5" in second


def test_transcripts_of_a_repeated_step_replace_the_old_ones(tmp_path):
    for name in ("old", "new"):
        write_transcripts(tmp_path, 4, "eval", episodes=[make_episode(name, 1)])
    (line,) = read_lines(tmp_path / "transcripts" / "000004-eval.jsonl")
    assert line["task"] == "new"
    files = sorted(f.name for f in (tmp_path / "transcripts").iterdir())
    assert files == ["000004-eval.jsonl", "000004-eval.txt"]


def test_a_column_must_match_the_turns(tmp_path):
    with pytest.raises(ValueError, match="column 'd' has 1 values for 2 turns of task a"):
        write_transcripts(
            tmp_path, 1, "x", episodes=[make_episode("a", 2)], traces=[Trace({"d": [1.0]})]
        )


def test_one_episode_as_text(tmp_path):
    write_transcripts(tmp_path, 1, "x", episodes=[make_episode("a", 2)])
    text = (tmp_path / "transcripts" / "000001-x.txt").read_text(encoding="utf-8")
    assert episode_text(make_episode("a", 2), {}) == text
    assert "  d 0.5\n" in episode_text(make_episode("a", 1), {"d": [0.5]})
