"""Evaluating shipped models, training runs and single steps."""

import gzip
import json
import os
import signal

import numpy as np
import pytest
from runs import page_content, start, typed

from atod_jax.envs import alfworld
from atod_jax.envs.pool import BrokenEnvironment
from atod_jax.evaluate import evaluate
from atod_jax.run import cli
from atod_jax.run.observer import Observer
from configs import household


def small_config(**changes):
    c = household.get_config("algo=grpo,smoke")
    c.env.max_turns = 3
    c.sampling.prompt_buckets = (160,)
    c.packing.minibatch_rows, c.packing.micro_rows = 16, 8
    c.eval.tasks = c.eval.final_tasks = c.eval.slots = 16
    c.eval.temperatures = (1.0,)
    c.teacher.path = ""
    c.update_from_flattened_dict(changes)
    return c


def test_a_run_and_its_last_step_evaluate_to_what_the_run_reported(tmp_path):
    cfg = small_config(total_steps=1)
    start(cfg, str(tmp_path / "run"))
    stored = json.loads((tmp_path / "run" / "evaluations" / "final-T1.json").read_text())
    for checkpoint in (tmp_path / "run", tmp_path / "run" / "checkpoints" / "1"):
        results = evaluate(typed(small_config()), str(checkpoint), str(tmp_path / "out"))
        assert results["T=1.0"].to_json() == stored
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert written["results"]["T=1.0"] == stored
    page = (tmp_path / "out" / "evaluation.md").read_text()
    for needed in ("all tasks", "| split | valid_unseen |", "| prompt template | compact |"):
        assert needed in page
    episodes = page_content(tmp_path / "out" / "evaluation.html")["episodes"]
    assert [[e["success"] for e in episodes]] == stored["success"]
    with gzip.open(tmp_path / "out" / "episodes-T1.jsonl.gz", "rt") as file:
        assert [json.loads(line)["task"] for line in file] == [e["task"] for e in episodes]
    assert written["protocol"]["sampling seeds"] == [0]
    assert written["protocol"]["thinking mode of the chat template"] == "off"


def test_several_seeds_give_pass_at_k_and_the_first_is_the_single_one(tmp_path):
    longer = {"env.max_turns": 20}
    (one,) = evaluate(typed(small_config(**longer)), "household/teacher-good", "").values()
    cfg = small_config(**longer, **{"eval.passes": 3})
    (three,) = evaluate(typed(cfg), "household/teacher-good", str(tmp_path)).values()
    assert three.success.shape == (3, 16)
    np.testing.assert_array_equal(three.success[:1], one.success)
    assert any((three.turns[0] != three.turns[n]).any() for n in (1, 2))
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["protocol"]["sampling seeds"] == [0, 1, 2]
    once = np.mean(three.success.any(axis=0))
    assert written["summary"]["T=1.0"]["pass@3"][0] == pytest.approx(once)
    assert "in 3 tries" in (tmp_path / "evaluation.md").read_text()


def test_the_number_of_slots_changes_nothing():
    """Neither how many episodes are open, nor how many actions are written side by side."""
    many, few = (
        evaluate(typed(small_config(**changes)), "household/teacher-good", "")["T=1.0"].to_json()
        for changes in ({}, {"eval.slots": 4, "sampling.rows": 3})
    )
    assert many == few


def fail_on(monkeypatch, is_broken):
    """Household games whose `reset` fails where `is_broken(task)` says so."""
    reset = alfworld.AlfworldEnv.reset

    def reset_or_fail(self, task):
        if is_broken(task):
            raise OSError("no answer")
        return reset(self, task)

    monkeypatch.setattr(alfworld.AlfworldEnv, "reset", reset_or_fail)


def test_an_outage_is_said_beside_the_number_and_is_no_number(monkeypatch, tmp_path, capsys):
    """One of 20 tasks, 5 %, still counts; with two of them nothing is stored."""
    cfg = typed(small_config(**{"eval.final_tasks": 20, "eval.slots": 20, "env.max_turns": 1}))
    broken = {"pick_heat_then_place_in_recep/valid_unseen-0-3"}
    fail_on(monkeypatch, lambda task: task.id in broken)
    result = evaluate(cfg, "household/teacher-good", str(tmp_path / "a"))["T=1.0"]
    assert (result.failed, result.failed_share) == (tuple(broken), 1 / 20)
    page, shown = (tmp_path / "a" / "evaluation.md").read_text(), capsys.readouterr().out
    for text in (page, shown):
        assert "(5.0 % not played)" in text
    assert "5.0 % of the episodes at T=1.0 could not be played and count as not solved" in shown
    broken |= {"look_at_obj_in_light/valid_unseen-0-7"}
    with pytest.raises(BrokenEnvironment, match=r"2 of 20 episodes could not be played .* 5%"):
        evaluate(cfg, "household/teacher-good", str(tmp_path / "b"))
    assert list((tmp_path / "b").iterdir()) == []


def test_an_outage_while_training_costs_no_finished_step(monkeypatch, tmp_path):
    """The environments are gone at the evaluation of step 1; the same command goes on."""
    changes = {"eval.every": 1, "total_steps": 1, "save_every": 100, "eval.final_tasks": 4}
    cfg, down = small_config(**changes, **{"eval.tasks": 5}), [False]
    fail_on(monkeypatch, lambda task: down[0])
    curve = Observer.curve

    def curve_in_an_outage(self, step, params):
        down[0] = step == 1
        curve(self, step, params)

    monkeypatch.setattr(Observer, "curve", curve_in_an_outage)
    with pytest.raises(BrokenEnvironment, match="5 of 5 episodes"):
        start(cfg, tmp_path)
    assert (tmp_path / "checkpoints" / "1").is_dir()
    assert not list((tmp_path / "evaluations").glob("final*"))
    monkeypatch.setattr(Observer, "curve", curve)
    down[0] = False
    start(cfg, tmp_path)
    assert "not played" not in (tmp_path / "report.md").read_text()


def test_a_shipped_model_by_name_gives_the_same_numbers_every_time(capsys):
    one, two = (evaluate(typed(small_config()), "household/teacher-good", "") for _ in range(2))
    assert one["T=1.0"].to_json() == two["T=1.0"].to_json()
    assert "valid_unseen: 16 tasks" in capsys.readouterr().out


def test_a_place_that_cannot_be_written_is_told_before_anything_is_played(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    fail_on(monkeypatch, lambda task: pytest.fail("played"))
    for place in ("/proc/a", tmp_path / "file", tmp_path / "file" / "a"):
        with pytest.raises(OSError, match=str(place)):
            evaluate(typed(small_config()), "household/teacher-good", str(place))


def test_missing_and_damaged_checkpoints_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--checkpoint=nowhere/at/all: no such folder"):
        evaluate(typed(small_config()), "nowhere/at/all", "")
    with pytest.raises(FileNotFoundError, match=r"no checkpoints of a run and no config\.json"):
        evaluate(typed(small_config()), str(tmp_path), "")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        evaluate(typed(small_config()), str(broken), "")


def test_a_signal_is_noticed_at_the_next_safe_point():

    before = signal.getsignal(signal.SIGTERM)
    with cli.StopRequest() as stop:
        stop.check()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(cli.Interrupted) as caught:
            stop.check()
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before
