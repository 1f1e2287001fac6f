"""Recorded runs: reading them, scoring them again, training on them."""

import subprocess
import sys

import numpy as np
import pytest
from hf_folders import load_hf
from runs import page_content, records, save_random_model, smoke_config, start, typed

from atod_jax import train
from atod_jax.episodes.recordings import EpisodeReader
from atod_jax.episodes.store import EpisodeWriter
from atod_jax.options.tree import flatten
from atod_jax.replay import replay


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    student = save_random_model(folder / "student")
    return student, save_random_model(folder / "teacher", hidden=24, seed=1)


def recorded_config(models, algo="atod", **changes):
    quiet = {"eval.every": 0, "save_every": 100}
    return smoke_config(models, algo, **(quiet | changes))


@pytest.fixture(scope="module")
def run(models, tmp_path_factory):
    """A run of three steps that kept its episodes."""
    folder = tmp_path_factory.mktemp("run")
    cfg = recorded_config(models, record=True, export=str(folder / "student"))
    start(cfg, str(folder))
    return folder


def same_for_both(folder):
    """The metrics of the training steps that do not speak of time or of the environments."""
    timed = ("seconds/", "env/", "rollout/kept_steps")
    return [
        {k: v for k, v in r.items() if not k.startswith(timed)}
        for r in records(folder)
        if "loss/total" in r
    ]


def assert_equal_weights(one, two):
    (_, a), (_, b) = load_hf(one), load_hf(two)
    flat_a, flat_b = flatten(a), flatten(b)
    assert flat_a.keys() == flat_b.keys()
    for name, value in flat_a.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(flat_b[name]), err_msg=name)


def test_training_on_recorded_episodes_gives_the_same_updates(run, models, tmp_path):
    cfg = recorded_config(models, export=str(tmp_path / "student"))
    cfg.rollout.source, cfg.rollout.episodes = "recorded", str(run)
    typed(cfg)
    start(cfg, str(tmp_path))
    assert len(same_for_both(run)) == 3
    assert same_for_both(tmp_path) == same_for_both(run)
    assert_equal_weights(tmp_path / "student", run / "student")
    with pytest.raises(AssertionError):  # and the updates did something
        assert_equal_weights(run / "student", models[0])


def test_supervised_turns_can_be_recorded_too(models, tmp_path):
    start(recorded_config(models, "sft", record=True), str(tmp_path / "fresh"))
    cfg = recorded_config(models, "sft")
    cfg.rollout.source, cfg.rollout.episodes = "recorded", str(tmp_path / "fresh")
    typed(cfg)
    start(cfg, str(tmp_path / "again"))
    assert same_for_both(tmp_path / "again") == same_for_both(tmp_path / "fresh")


def test_a_run_records_every_turn_with_its_signals(run):
    recording = EpisodeReader(run)
    assert recording.steps == [0, 1, 2]
    for step, metrics in enumerate(same_for_both(run)):
        episodes, traces = recording.read(step)
        assert len(episodes) == 8
        assert sum(len(e.turns) for e in episodes) == metrics["rollout/rows"]
        turns = [trace.turns for trace in traces]
        weights = [w for c in turns for w in c["w"]]
        assert np.mean(weights) == pytest.approx(metrics["turn_weight/mean"], rel=1e-5)
        assert np.isfinite([x for c in turns for name in "dhw" for x in c[name]]).all()
        for name, metric in (("entropy", "student/entropy"), ("distill", "opd/abs_mean")):
            tokens = np.concatenate([x for trace in traces for x in trace.tokens[name]])
            assert np.abs(tokens).mean() == pytest.approx(metrics[metric], rel=1e-4)
        kappa = metrics["mix/kappa"]
        for trace in traces:  # the teacher's part is kappa w (log p_teacher - log p_student)
            columns = [trace.tokens[name] for name in ("teacher", "student", "distill")]
            for w, theirs, ours, part in zip(trace.turns["w"], *columns, strict=True):
                np.testing.assert_allclose(kappa * w * (theirs - ours), part, rtol=1e-4, atol=1e-6)


def test_a_killed_run_goes_on_and_records_every_step_once(run, models, tmp_path, monkeypatch):
    cfg = recorded_config(models, record=True)

    def die(writer, step, values, write=train.Writer.scalars):
        if step == 1:
            raise KeyboardInterrupt
        write(writer, step, values)

    with monkeypatch.context() as patch:
        patch.setattr(train.Writer, "scalars", die)
        with pytest.raises(KeyboardInterrupt):
            start(cfg, str(tmp_path))
    assert EpisodeReader(tmp_path).steps == [0, 1]  # both are played again: no checkpoint was due
    start(cfg, str(tmp_path))
    straight, resumed = EpisodeReader(run), EpisodeReader(tmp_path)
    assert resumed.steps == straight.steps
    for step in straight.steps:
        for one, two in zip(straight.read(step)[0], resumed.read(step)[0], strict=True):
            assert one.task == two.task
            for a, b in zip(one.turns, two.turns, strict=True):
                np.testing.assert_array_equal(a.action, b.action)
                np.testing.assert_array_equal(a.logp, b.logp)


def test_episodes_are_printed_and_scored_again(run, models, capsys):
    assert replay(None, str(run), step=0, limit=2) is None
    shown = capsys.readouterr().out
    assert shown.count("\ntask ") == 2
    assert all(f"  {name} " in shown for name in ("reward", "d", "h", "w"))
    assert "2 of 8 episodes shown" in shown
    rescored = replay(
        typed(recorded_config(models)), str(run), step=0, limit=1
    )  # step 0: the start weights
    assert rescored.difference < 1e-5
    episodes, recorded = EpisodeReader(run).read(0)
    for episode, then, now in zip(episodes, recorded, rescored.columns, strict=True):
        sampled = [float(turn.logp.mean()) for turn in episode.turns]
        np.testing.assert_allclose(now["sampler"], sampled, rtol=1e-5)
        np.testing.assert_allclose(now["student"], sampled, rtol=1e-4)
        for name in "dhw":
            np.testing.assert_allclose(now[f"{name}_now"], then.turns[name], rtol=1e-4, atol=1e-6)
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in ("sampler", "student", "teacher", "d_now"))
    assert "largest difference" in shown


def test_a_page_shows_every_token_of_a_recorded_step(run, models, tmp_path, capsys):
    page = tmp_path / "step.html"
    replay(typed(recorded_config(models)), str(run), step=0, limit=1, page=str(page))
    assert str(page) in capsys.readouterr().out
    episodes = page_content(page)["episodes"]
    played, _ = EpisodeReader(run).read(0)
    assert [e["task"] for e in episodes] == [t.task.id for t in played]
    for told, episode in zip(episodes, played, strict=True):
        assert (told["set"], told["step"]) == ("train", 0)
        for turn, sampled in zip(told["turns"], episode.turns, strict=True):
            assert len(turn["pieces"]) == len(sampled.action)
            assert {"teacher", "student", "advantage", "distill", "entropy"} <= set(turn["streams"])
    with pytest.raises(ValueError, match="--page=x needs --checkpoint or --config"):
        replay(None, str(run), page="x")


def test_the_weights_after_training_say_something_else(run, models):
    trained = replay(typed(recorded_config(models)), str(run), checkpoint=str(run), limit=1)
    assert trained.difference > 1e-3


def test_the_command_needs_no_config(run):
    done = subprocess.run(
        [sys.executable, "-m", "atod_jax.replay", f"--episodes={run}", "--step=1", "--limit=1"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "step 1 of" in done.stdout


# ---------------------------------------------------------------------------------------- bad input


def test_a_command_line_without_episodes_is_answered_in_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "atod_jax.replay"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "--episodes is missing" in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.strip()]) == 1


def test_what_cannot_be_shown_is_named(run):
    with pytest.raises(FileNotFoundError, match=r"no recorded episodes in 'nowhere'"):
        replay(None, "nowhere")
    with pytest.raises(ValueError, match=r"no step 9 in .*recorded steps: 0 to 2"):
        replay(None, str(run), step=9)
    with pytest.raises(ValueError, match=r"--checkpoint=x needs a --config"):
        replay(None, str(run), step=0, checkpoint="x")


def test_more_steps_than_were_recorded_are_refused_before_the_start(run, models, tmp_path):
    cfg = recorded_config(models, total_steps=5)
    cfg.rollout.source, cfg.rollout.episodes = "recorded", str(run)
    with pytest.raises(ValueError, match=r"total_steps=5: .*no episodes of step 3; set total_st"):
        start(cfg, str(tmp_path))
    assert not (tmp_path / "metrics.jsonl").exists()


def test_episodes_of_another_tokenizer_are_refused(run, models, tmp_path):
    EpisodeWriter(tmp_path / "episodes", "another").write(0, EpisodeReader(run).read(0)[0])
    cfg = recorded_config(models, total_steps=1)
    cfg.rollout.source, cfg.rollout.episodes = "recorded", str(tmp_path)
    with pytest.raises(ValueError, match=r"another tokenizer than that of the student"):
        start(cfg, str(tmp_path / "again"))
    with pytest.raises(ValueError, match=r"another tokenizer"):
        replay(typed(cfg), str(tmp_path), limit=1)


@pytest.mark.parametrize("folder", ["", "nowhere"])
def test_a_config_without_the_recorded_folder_is_refused(folder, models):
    cfg = recorded_config(models)
    cfg.rollout.source, cfg.rollout.episodes = "recorded", folder
    with pytest.raises(ValueError, match=r"rollout\.episodes=.*: no such folder; name the workdir"):
        typed(cfg)
