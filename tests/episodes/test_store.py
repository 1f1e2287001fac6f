"""Recorded episodes: what is read is what was written, and damage is named."""

import gc
import itertools
import json
import os

import numpy as np
import pytest

from atod_jax.episodes import store
from atod_jax.episodes.recordings import EpisodeReader
from atod_jax.episodes.store import FIELDS, LATER, TOKEN_COLUMNS, EpisodeWriter, split_name
from atod_jax.records import StopReason, Task, Trace, Trajectory, Turn


def make_turn(rng, **changes):
    ids = lambda n: rng.integers(0, 2**31 - 1, n).astype(np.int32)  # noqa: E731
    length = int(rng.integers(1, 9))
    values = {
        "prompt": ids(5), "action": ids(length),
        "logp": -rng.exponential(size=length).astype(np.float32), "observation": "Ein Käfer 🐞\n",
        "response": "<action>go</action>", "command": "go", "valid": bool(rng.integers(2)),
        "problem": ["", "no action tags"][int(rng.integers(2))], "reward": float(rng.normal()),
    }  # fmt: skip
    return Turn(**(values | changes))


def replayed_turn():
    nothing = np.zeros(0, np.int32)
    return Turn(
        prompt=nothing, action=nothing, logp=np.zeros(0, np.float32), observation="a room",
        response="look", command="look", valid=True, reward=0.1 + 0.2, replayed=True,
    )  # fmt: skip


def episodes(seed=0):
    """Every shape an episode can have: replayed turns, a teacher's prompts, no turns at all."""
    rng = np.random.default_rng(seed)
    task = Task(id="game/1", kind="pick", payload={"big": "thing"})
    privileged = np.arange(7, dtype=np.int32)
    return [
        Trajectory(task, 3, (make_turn(rng), make_turn(rng)), True, StopReason.done, 1.0),
        Trajectory(task, 3, (replayed_turn(), make_turn(rng)), False, StopReason.max_turns, 1 / 3),
        Trajectory(
            task, 4, (make_turn(rng, teacher_prompt=privileged),), False, StopReason.done, 0.0
        ),
        Trajectory(task, 4, (), False, StopReason.prompt_too_long, 0.0),
    ]


def trace_of(episode):
    """A trace with a number for every turn and every token."""
    rng = np.random.default_rng(len(episode.turns))
    lengths = [len(turn.action) for turn in episode.turns]
    return Trace(
        {c: list(np.arange(len(lengths)) / 4) for c in "dhw"},
        {name: [rng.normal(size=n).astype(np.float32) for n in lengths] for name in TOKEN_COLUMNS},
    )


def plain(trajectory):
    """A trajectory as comparable values; arrays as their type and bytes."""

    def turn_values(turn):
        values = vars(turn).values()
        return [(v.dtype.str, v.tobytes()) if isinstance(v, np.ndarray) else v for v in values]

    task = (trajectory.task.id, trajectory.task.kind)
    rest = {k: v for k, v in vars(trajectory).items() if k not in ("task", "turns")}
    return task, rest, [turn_values(turn) for turn in trajectory.turns]


def assert_same(read, written):
    assert [plain(t) for t in read] == [plain(t) for t in written]


def test_what_is_read_is_what_was_written_bit_for_bit(tmp_path):
    writer = EpisodeWriter(tmp_path / "episodes", "digest")
    traces = [trace_of(e) for e in episodes(2)]
    writer.write(7, episodes(7))
    writer.write(2, episodes(2), traces)
    for path in (tmp_path, tmp_path / "episodes", tmp_path / "episodes" / "1.0.0"):
        there = EpisodeReader(path)
        assert (there.steps, there.tokenizer) == ([2, 7], "digest")
    assert_same(there.read(7)[0], episodes(7))
    read, read_traces = there.read(2)
    assert_same(read, episodes(2))
    for got, want in zip(read_traces, traces, strict=True):
        assert got.turns == want.turns
        for name, streams in got.tokens.items():
            assert [x.tobytes() for x in streams] == [x.tobytes() for x in want.tokens[name]]
    assert [set(t.tokens) for t in read_traces] == [set(TOKEN_COLUMNS)] * 3 + [set()]
    for nothing in there.read(7)[1]:
        assert all(np.isnan(x) for x in nothing.turns["d"])
        assert nothing.tokens == {}


def test_the_ecosystem_reads_a_flat_record_per_turn(tmp_path):
    import tensorflow_datasets as tfds

    writer = EpisodeWriter(tmp_path / "episodes", "digest")
    for step in range(2):
        writer.write(step, episodes(step))
    builder = tfds.builder("episodes", data_dir=tmp_path)
    turns = builder.as_data_source("step_000001")
    assert len(turns) == 6
    assert len(builder.as_data_source("all")) == 12
    assert all(set(turn) == set(FIELDS) for turn in turns)
    assert [(t["turn"], t["is_first"], t["is_last"], t["is_terminal"]) for t in turns] == [
        (0, True, False, False), (1, False, True, True), (0, True, False, False),
        (1, False, True, False), (0, True, True, True), (-1, True, True, False),
    ]  # fmt: skip
    assert builder.info.features["logp"]._doc.desc == FIELDS["logp"][1]


def test_a_step_played_again_takes_the_place_of_its_first_version(tmp_path):
    writer = EpisodeWriter(tmp_path, "digest")
    writer.write(0, episodes(0))
    writer.write(1, episodes(1))
    EpisodeWriter(tmp_path, "digest").write(1, episodes(8)[:2])
    there = EpisodeReader(tmp_path)
    assert there.steps == [0, 1]
    assert_same(there.read(0)[0], episodes(0))
    assert_same(there.read(1)[0], episodes(8)[:2])


def test_a_long_run_keeps_no_more_in_memory_than_its_splits(tmp_path):
    import tensorflow_datasets as tfds

    def kept():
        gc.collect()
        return sum(isinstance(o, tfds.core.DatasetInfo) for o in gc.get_objects())

    writer = EpisodeWriter(tmp_path, "digest")
    writer.write(0, episodes(0))
    before = kept()
    for step in range(1, 6):
        writer.write(step, episodes(step))
    assert kept() <= before + 1
    assert EpisodeReader(tmp_path).steps == [0, 1, 2, 3, 4, 5]


def test_a_data_set_from_before_later_fields_were_kept_goes_on(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(store, "FIELDS", {k: v for k, v in FIELDS.items() if k not in LATER})
        EpisodeWriter(tmp_path, "digest").write(0, episodes(0))
    EpisodeWriter(tmp_path, "digest").write(1, episodes(1), [trace_of(e) for e in episodes(1)])
    there = EpisodeReader(tmp_path)
    for step in range(2):
        assert [t.problem for e in there.read(step)[0] for t in e.turns] == [""] * 5
        assert [len(e.turns) for e in there.read(step)[0]] == [2, 2, 1, 0]
        assert [t.tokens for t in there.read(step)[1]] == [{}] * 4


class Killed(BaseException):
    """Stands for the end of the process."""


def test_a_kill_at_any_moment_leaves_whole_steps_only(tmp_path, monkeypatch):
    """Dies at each renaming in turn while step 1 is written a second time."""
    for moment in itertools.count():
        folder = tmp_path / str(moment)
        writer = EpisodeWriter(folder, "digest")
        writer.write(0, episodes(0))
        writer.write(1, episodes(1))
        calls = itertools.count()

        def rename(old, new, calls=calls, moment=moment, replace=os.replace):
            if next(calls) == moment:
                raise Killed
            replace(old, new)

        with monkeypatch.context() as patch:
            patch.setattr(store.os, "replace", rename)
            try:
                writer.write(1, episodes(8)[:2])
                survived = True
            except Killed:
                survived = False
        there = EpisodeReader(folder)
        assert_same(there.read(0)[0], episodes(0))
        if 1 in there.steps:
            read = there.read(1)[0]
            assert_same(read, episodes(1) if len(read) == 4 else episodes(8)[:2])
        EpisodeWriter(folder, "digest").write(1, episodes(8)[:2])
        assert_same(EpisodeReader(folder).read(1)[0], episodes(8)[:2])
        assert not (folder / "1.0.0" / ".partial").exists()
        if survived:
            break
    assert moment == 7  # the index without the step (3 files), the shard, the index with it (3)


# ---------------------------------------------------------------------------------------- bad input


def test_a_folder_without_recordings_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no recorded episodes in .*--config\.record=true"):
        EpisodeReader(tmp_path / "nowhere")


def test_a_missing_step_names_those_there(tmp_path):
    EpisodeWriter(tmp_path, "digest").write(3, episodes())
    with pytest.raises(ValueError, match=r"no step 4 in .*recorded steps: 3 to 3"):
        EpisodeReader(tmp_path).read(4)


@pytest.mark.parametrize("keep", [0, 1000, 70_000])
def test_a_truncated_file_is_named(keep, tmp_path):
    EpisodeWriter(tmp_path, "digest").write(0, episodes())
    (shard,) = (tmp_path / "1.0.0").glob(f"*{split_name(0)}*")
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"episodes-step_000000\.\* is damaged"):
        EpisodeReader(tmp_path).read(0)


@pytest.mark.parametrize("keep", [None, 0, 65536, -1])
def test_a_file_that_is_cut_or_gone_is_known_before_it_is_read(keep, tmp_path, capsys):
    writer = EpisodeWriter(tmp_path, "digest")
    for step in range(3):
        writer.write(step, episodes(step))
    EpisodeReader(tmp_path).require_whole()
    (file,) = (tmp_path / "1.0.0").glob("*step_000001*")
    if keep is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"1 of 3 steps .*; restore .*step_000001\.\*, the first"):
        EpisodeReader(tmp_path).require_whole()
    EpisodeWriter(tmp_path, "digest").write(3, episodes(3))
    assert "1 of 3 steps are damaged or gone, step_000001 the first" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["dataset_info", "features", "metadata"])
@pytest.mark.parametrize("text", ["{", "", "null", "[" * 100_000])
def test_a_damaged_index_is_named(name, text, tmp_path):
    EpisodeWriter(tmp_path, "digest").write(0, episodes())
    (tmp_path / "1.0.0" / f"{name}.json").write_text(text)
    with pytest.raises(ValueError, match=rf"1\.0\.0/{name}\.json .*; move .* away to record"):
        EpisodeReader(tmp_path)


def test_a_data_set_of_something_else_is_refused(tmp_path):
    EpisodeWriter(tmp_path, "digest").write(0, episodes())
    (tmp_path / "1.0.0" / "metadata.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match=r"holds no recorded episodes: it lacks tokenizer"):
        EpisodeReader(tmp_path)


def test_columns_must_fit_the_episodes(tmp_path):
    with pytest.raises(ValueError, match="zip"):
        EpisodeWriter(tmp_path, "digest").write(0, episodes(), [Trace()])
