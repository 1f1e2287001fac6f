"""The training loop from end to end, on random tiny models and generated games."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hf_folders import load_hf
from runs import (
    TOKENIZER,
    records,
    save_random_model,
    smoke_config,
    start,
    steps_that_compile,
    without_times,
)

from atod_jax.episodes.render import load_tokenizer
from atod_jax.models.checkpoint_io import save_hf
from atod_jax.run import cli, conclusion
from atod_jax.run.learning import Learner

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    student = save_random_model(folder / "student")
    return student, save_random_model(folder / "teacher", hidden=24, seed=1)


@pytest.mark.parametrize("algo", ["atod", "opd", "grpo", "sft"])
def test_a_run_leaves_a_report_metrics_transcripts_and_a_loadable_student(
    algo, models, tmp_path, capsys
):
    cfg = smoke_config(models, algo, export=str(tmp_path / "student"))
    start(cfg, str(tmp_path / "run"))
    run = tmp_path / "run"
    report = (run / "report.md").read_text()
    assert "before training" in report
    said, log = capsys.readouterr(), (run / "run.log").read_text()
    assert "step 2: 0 % [0, 32] at T=1, 8 tasks" in said.out
    assert re.search(r"\| after - before +\| \+0.0 \[\+0.0, \+0.0\] \|\n", said.out)
    assert f" -m atod_jax evaluate --checkpoint={run} " in said.out.partition("next:")[2]
    lines = [line[20:] for line in log.splitlines()[1:]]
    assert set(lines) == {*said.out.splitlines(), *said.err.splitlines()}
    for picture in ("success_curve.png", "episode.png"):
        assert f"]({picture})" in report
        assert (run / picture).stat().st_size > 10_000
    steps = [r["step"] for r in records(run) if "loss/total" in r]
    assert steps == [0, 1, 2]
    curve = [r["step"] for r in records(run) if "eval/success" in r]
    assert curve == [0, 2, 3]
    (episode, *_) = (run / "transcripts" / "000002-eval.jsonl").read_text().splitlines()
    shown = set(json.loads(episode)["turns"][0])
    assert {"observation", "response", "command", "d", "h"} <= shown
    assert ("w" in shown) == (algo in ("atod", "opd"))  # the others weigh no teacher's signal
    config, params = load_hf(tmp_path / "student")
    _, before = load_hf(models[0])
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), params, before)
    # Nobody wins a game in three turns, so GRPO has no signal and must not move at all.
    assert (max(jax.tree.leaves(moved)) > 0) == (algo != "grpo")
    assert config.vocab_size == len(load_tokenizer(str(tmp_path / "student")))


@pytest.mark.parametrize(
    ("algo", "options"),
    [
        ("atod", {"algorithm.atod.token_signal": "exact", "loss.kl_coef": 0.1}),
        ("sod", {"loss.surrogate": "gspo", "loss.tis_cap": 2.0}),
        ("tcod", {"algorithm.tcod.direction": "back", "algorithm.tcod.prefix_by": "teacher"}),
        ("tcod", {"algorithm.tcod.direction": "back", "env.max_turns": 16}),
        ("sdar", {"loss.aggregation": "trajectory-mean-token-mean", "env.max_turns": 6}),
        ("opd_gated", {"algorithm.opd_gated.reward.estimator": "gigpo"}),
    ],
    ids=str,
)  # fmt: skip
def test_every_method_runs_from_rollout_to_update(algo, options, models, tmp_path):
    changes = {
        "total_steps": 1, "eval.every": 0, "eval.final_tasks": 8,
        "sampling.prompt_buckets": (160, 320),
    }  # fmt: skip
    if algo == "sdar":
        models = (models[0], "")  # the student is its own teacher
    start(smoke_config(models, algo, **(changes | options)), str(tmp_path))
    (step,) = [r for r in records(tmp_path) if "loss/total" in r]
    assert step["update/grad_norm"] > 0
    assert ("loss/teacher_kl" in step) == (algo == "atod")
    assert ("loss/kl_start" in step) == ("loss.kl_coef" in options)
    assert ("loss/tis_weight" in step) == ("loss.tis_cap" in options)
    assert ("loss/gate" in step) == (algo == "sdar")
    if algo == "sod":  # sampler and scorer agree, so the correction corrects nothing
        assert step["loss/tis_weight"] == pytest.approx(1.0, abs=1e-4)
    replayed = 8 * step["rollout/turns"] - step["rollout/rows"]
    assert (replayed > 0) == ("env.max_turns" in options and algo == "tcod")


def test_the_sampler_and_the_scorer_agree_on_every_token(models, tmp_path):
    start(smoke_config(models, total_steps=1), str(tmp_path))
    assert records(tmp_path)[1]["student/sampler_gap"] < 1e-5


def test_an_interrupted_run_ends_like_an_undisturbed_one(models, tmp_path, monkeypatch):
    cfg = smoke_config(models)
    start(cfg, str(tmp_path / "straight"))
    calls = iter(range(1000))

    def interrupt(self):
        if next(calls) == 13:  # in the middle of a rollout
            raise cli.Interrupted(15)

    with monkeypatch.context() as patch:
        patch.setattr(cli.StopRequest, "check", interrupt)
        with pytest.raises(cli.Interrupted):
            start(cfg, str(tmp_path / "stopped"))
    done = [r["step"] for r in records(tmp_path / "stopped") if "loss/total" in r]
    assert done != [0, 1, 2]
    start(cfg, str(tmp_path / "stopped"))
    assert without_times(tmp_path / "stopped") == without_times(tmp_path / "straight")
    for name in ("final-T1.json", "start-T1.json", "teacher-T1.json"):
        one, two = (
            (tmp_path / run / "evaluations" / name).read_text() for run in ("stopped", "straight")
        )
        assert one == two


def test_a_finished_run_whose_export_failed_is_started_again_and_changes_nothing(
    models, tmp_path, monkeypatch
):
    run, export = tmp_path / "run", tmp_path / "model"

    def full(*args, **kwargs):
        assert str(export) in report.read_text()  # a run killed from here on has one
        raise OSError("No space left on device")

    report = run / "report.md"
    cfg = smoke_config(models, total_steps=1, export=str(export))
    with monkeypatch.context() as patch:
        patch.setattr(conclusion, "save_hf", full)
        with pytest.raises(
            ValueError, match=r"No space left .*atod_jax.export --checkpoint=.*run "
        ):
            start(cfg, run)
    assert "before training" in report.read_text()
    assert str(export) not in report.read_text()
    before = without_times(run)
    for _ in range(2):  # the second time over its own export
        start(cfg, run)
        assert load_hf(export)
    assert [r for r in without_times(run) if "loss/total" in r] == [
        r for r in before if "loss/total" in r
    ]


def test_an_export_that_would_lose_something_is_refused_before_the_first_step(models, tmp_path):
    for place in models:
        with pytest.raises(
            ValueError, match=rf"export={place} holds {place}, which this run needs"
        ):
            start(smoke_config(models, export=place), tmp_path / "run")
    for place in ("", "run", "run/checkpoints", "run/episodes"):
        with pytest.raises(ValueError, match=r"which this run needs; name a new folder"):
            start(smoke_config(models, export=str(tmp_path / place)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_steady_state_does_not_recompile(models, tmp_path):
    compiled = steps_that_compile(smoke_config(models), tmp_path)
    assert compiled
    assert not [s for s in compiled if s in (2, 3, 4)]


# ---------------------------------------------------------------------------------------- bad input


def test_a_diverged_run_stops_and_saves_nothing(models, tmp_path):
    cfg = smoke_config(models, **{"optim.lr": 1e30, "save_every": 1, "eval.every": 0})
    with pytest.raises(FloatingPointError, match=r"after step 0: .*; use a lower optim\.lr"):
        start(cfg, tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize("value", [np.nan, 1e7])
def test_weights_that_are_not_finite_are_never_saved(models, tmp_path, monkeypatch, value):
    """They appear after an update, unseen by its loss and its gradient."""
    call = Learner.__call__

    def poisoned(self, state, *args, **kwargs):
        state, metrics = call(self, state, *args, **kwargs)
        if int(state.step) == 1:
            embed = state.params["embed"]["embedding"].at[3, 4].set(value)
            state = state.replace(params=state.params | {"embed": {"embedding": embed}})
        return state, metrics

    monkeypatch.setattr(Learner, "__call__", poisoned)
    cfg = smoke_config(models, save_every=1, export=str(tmp_path / "model"), **{"eval.every": 0})
    advice = r".*`python -m atod_jax.export (.*) --out=DIR`"
    found = r"embed/embedding is not finite, or beyond 1e\+06, after step 1: " + advice
    with pytest.raises(FloatingPointError, match=found) as error:
        start(cfg, tmp_path / "run")
    saved = [p.name for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit()]
    assert saved == ["1"]
    assert not (tmp_path / "model").exists()
    if np.isnan(value):  # the advice can be followed
        flag = re.search(found, str(error.value))[1]
        command = [sys.executable, "-m", "atod_jax.export", flag, f"--out={tmp_path / 'model'}"]
        subprocess.run(command, check=True, cwd=REPO)
        assert load_hf(tmp_path / "model")


def test_a_padded_teacher_teaches_the_same(models, tmp_path):
    lm_config, params = load_hf(models[1])
    table = params["embed"]["embedding"]
    params["embed"]["embedding"] = np.pad(table, ((0, 1000 - len(table)), (0, 0)), mode="wrap")
    padded = dataclasses.replace(lm_config, vocab_size=1000)
    save_hf(tmp_path / "padded", padded, params, tokenizer=load_tokenizer(models[1]))
    for name, teacher in (("a", models[1]), ("b", str(tmp_path / "padded"))):
        cfg = smoke_config((models[0], teacher), total_steps=1, **{"eval.every": 0})
        start(cfg, str(tmp_path / name))
    assert without_times(tmp_path / "a") == without_times(tmp_path / "b")


def test_training_in_bfloat16_with_a_teacher_of_integers(models, tmp_path):
    types = {"student.dtype": "bfloat16", "teacher.dtype": "int8"}
    cfg = smoke_config(models, total_steps=1, export=str(tmp_path / "student"), **types)
    start(cfg, str(tmp_path / "run"))
    _, params = load_hf(tmp_path / "student")
    exported = json.loads((tmp_path / "student" / "config.json").read_text())
    assert exported["dtype"] == "float32"  # the weights that were trained, not what computed
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))
    (step,) = [r for r in records(tmp_path / "run") if "loss/total" in r]
    assert np.isfinite(step["loss/total"])
    assert step["update/grad_norm"] > 0


def test_a_teacher_with_another_tokenizer_is_refused(models, tmp_path):
    tokenizer = json.loads((TOKENIZER / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab[100], vocab[101] = vocab[101], vocab[100]
    changed = tmp_path / "tokenizer"
    changed.mkdir()
    for file in TOKENIZER.iterdir():
        (changed / file.name).write_text(file.read_text())
    (changed / "tokenizer.json").write_text(json.dumps(tokenizer))
    other = save_random_model(tmp_path / "other", tokenizer=changed)
    with pytest.raises(ValueError, match=r"teacher\.path.*tokenizer differs"):
        start(smoke_config((models[0], other)), str(tmp_path / "run"))


def test_distillation_without_a_teacher_is_refused(models, tmp_path):
    with pytest.raises(ValueError, match=r"teacher\.path='': .* needs a teacher"):
        start(smoke_config((models[0], "")), str(tmp_path / "run"))


def test_missing_models_name_the_option_and_the_shipped_ones(models, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"student\.path='nowhere'.*household"):
        start(smoke_config(("nowhere", models[1])), str(tmp_path / "run"))


def test_too_long_prompts_name_the_limit(models, tmp_path):
    with pytest.raises(ValueError, match="prompt_buckets"):
        start(smoke_config(models, **{"sampling.prompt_buckets": (16,)}), str(tmp_path))


def test_batches_that_do_not_fit_the_mesh_name_the_next_size(models, tmp_path):
    with pytest.raises(ValueError, match=r"packing\.micro_rows=4 .* use 8"):
        start(smoke_config(models, **{"packing.micro_rows": 4}), str(tmp_path))
