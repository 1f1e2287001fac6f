"""Evaluating shipped models, training runs and single steps."""

import json
import os
import signal

import numpy as np
import pytest
from runs import start, typed

from atod_jax.evaluate import evaluate
from atod_jax.run import cli
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


def test_a_shipped_model_by_name_gives_the_same_numbers_every_time(capsys):
    one, two = (evaluate(typed(small_config()), "household/teacher-good", "") for _ in range(2))
    assert one["T=1.0"].to_json() == two["T=1.0"].to_json()
    assert "valid_unseen: 16 tasks" in capsys.readouterr().out


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
