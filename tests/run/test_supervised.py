"""Supervised runs: nothing is scored, nothing is played that nobody asked for, targets fit."""

import numpy as np
import pytest
from runs import load_models, records, save_random_model, smoke_config, start, typed

from atod_jax.records import StopReason, Task, Trajectory, Turn
from atod_jax.run.batch import form_of
from atod_jax.run.evaluation import Evaluator
from atod_jax.run.scorers import BatchScorer


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return save_random_model(tmp_path_factory.mktemp("model") / "student")


def supervised(student, **changes):
    return smoke_config((student, ""), "sft", total_steps=1, **{"eval.every": 0} | changes)


def test_nothing_is_scored_and_no_curve_is_played(student, tmp_path, monkeypatch):
    played = []
    run = Evaluator.run

    def count(self, params, tasks, **options):
        played.append(len(tasks))
        return run(self, params, tasks, **options)

    monkeypatch.setattr(Evaluator, "run", count)
    monkeypatch.setattr(BatchScorer, "__call__", None)
    start(supervised(student), tmp_path)
    assert played == [8, 8]  # at the start and at the end
    (step,) = records(tmp_path)
    assert step["loss/nll"] == pytest.approx(step["loss/total"])
    assert not {"eval/success", "student/entropy", "loss/ppo_kl"} & set(step)


def test_targets_that_do_not_fit_are_known_before_anything_is_played(
    student, tmp_path, monkeypatch
):
    monkeypatch.setattr(Evaluator, "run", None)
    message = r"max_new_tokens=4: the longest target of the first step has (\d+) tokens .*to \1 or"
    with pytest.raises(ValueError, match=message):
        start(supervised(student, **{"sampling.max_new_tokens": 4}), tmp_path / "a")
    with pytest.raises(ValueError, match=r"prompt_buckets=\(16,\): no first prompt fits"):
        start(supervised(student, **{"sampling.prompt_buckets": (16,)}), tmp_path / "b")


def test_a_later_step_with_longer_targets_has_a_wider_batch(student):
    c = supervised(student)
    layouts, model, _ = load_models(c)

    def columns(length):
        ids = np.ones(length, np.int32)
        turn = Turn(ids, ids, np.zeros(length, np.float32), "", "", "", True, 0.0)
        episode = Trajectory(Task("t", "k", None), 0, (turn,), True, StopReason.done)
        form = form_of(typed(c), [episode], model=model.lm.config, mesh=layouts.student.mesh)
        return form.response_columns

    most = c.sampling.max_new_tokens
    assert columns(most) == most
    assert columns(most + 1) == -(-(most + 1) // 64) * 64
