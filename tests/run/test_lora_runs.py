"""Runs whose student trains adapters alone: interrupted, evaluated, exported."""

import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from hf_folders import load_hf
from runs import records, save_random_model, smoke_config, start, typed, without_times

from atod_jax.evaluate import evaluate
from atod_jax.export import export
from atod_jax.run import cli

LORA = {"student.lora_rank": 4, "student.lora_alpha": 8.0, "optim.lr": 0.01}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    student = save_random_model(folder / "student")
    return student, save_random_model(folder / "teacher", hidden=24, seed=1)


def config(models, **changes):
    options = {
        "algorithm.atod.token_signal": "exact", "loss.kl_coef": 0.1, "total_steps": 2,
        "packing.minibatch_rows": 32,
    }  # fmt: skip
    return smoke_config(models, **(LORA | options | changes))


@pytest.fixture(scope="module")
def run(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    start(config(models, export=str(folder / "student")), str(folder))
    return folder


def test_the_export_is_an_ordinary_model_that_differs_in_its_matrices(models, run, tmp_path):
    lm_config, params = load_hf(run / "student")
    old_config, before = load_hf(models[0])
    assert lm_config == old_config
    old = flatten_dict(before)
    for path, x in flatten_dict(params).items():
        moved = np.abs(x - old[path]).max() > 1e-4
        assert moved == (path[-1] == "kernel"), path
    export(typed(config(models)), str(run), str(tmp_path / "out"))
    jax.tree.map(np.testing.assert_array_equal, load_hf(tmp_path / "out")[1], params)


def test_a_folder_has_no_adapters_of_its_own(models, tmp_path):
    export(typed(config(models)), models[1], str(tmp_path / "out"))
    both = (load_hf(folder)[1] for folder in (tmp_path / "out", models[1]))
    jax.tree.map(np.testing.assert_array_equal, *both)


def test_a_run_of_adapters_can_be_evaluated(models, run):
    (result,) = evaluate(typed(config(models)), str(run), "").values()
    assert result.to_json() == json.loads((run / "evaluations" / "final-T1.json").read_text())


def test_the_kl_to_the_start_grows_from_nothing(run):
    first, second = (r["loss/kl_start"] for r in records(run) if "loss/total" in r)
    assert abs(first) < 1e-7
    assert second > 1e-4


def test_checkpoints_hold_adapters_and_their_moments_alone(run):
    arrays = json.loads((run / "checkpoints" / "2" / "state" / "_METADATA").read_text())
    names = {key.rsplit("'", 2)[-2] for key in arrays["tree_metadata"]}
    assert {"lora_a", "lora_b"} <= names
    assert not names & {"kernel", "embedding", "scale"}


def test_an_interrupted_run_ends_like_an_undisturbed_one(models, run, tmp_path, monkeypatch):
    cfg, calls = config(models, export=str(tmp_path / "student")), iter(range(1000))
    metrics = tmp_path / "metrics.jsonl"

    def interrupt(self):
        """In the middle of the second iteration."""
        if metrics.exists() and "loss/total" in metrics.read_text() and next(calls) == 2:
            raise cli.Interrupted(15)

    with monkeypatch.context() as patch:
        patch.setattr(cli.StopRequest, "check", interrupt)
        with pytest.raises(cli.Interrupted):
            start(cfg, str(tmp_path))
    assert [r["step"] for r in records(tmp_path) if "loss/total" in r] == [0]
    start(cfg, str(tmp_path))
    assert without_times(tmp_path) == without_times(run)
    both = (load_hf(folder / "student")[1] for folder in (tmp_path, run))
    jax.tree.map(np.testing.assert_array_equal, *both)


def test_a_student_that_is_its_own_teacher(models, tmp_path):
    cfg = smoke_config((models[0], ""), "sdar", **(LORA | {"total_steps": 1, "env.max_turns": 6}))
    cfg.sampling.prompt_buckets, cfg.student.dtype = (160, 320), "bfloat16"
    start(cfg, str(tmp_path))
    (step,) = [r for r in records(tmp_path) if "loss/total" in r]
    assert step["update/grad_norm"] > 0
    assert "loss/gate" in step


@pytest.mark.parametrize(
    ("key", "value"), [("path", 1), ("lora_alpha", 16.0), ("lora_rank", 8)], ids=str
)
def test_adapters_of_another_config_are_refused(key, value, models, run):
    cfg = config(models)
    cfg.student[key] = models[value] if key == "path" else value
    with pytest.raises(ValueError, match=rf"student\.{key}=.*were trained with.*set --config"):
        evaluate(typed(cfg), str(run), "")
