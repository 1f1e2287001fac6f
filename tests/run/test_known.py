"""First evaluations that another run has made: taken where they are this run's own, else not."""

import os
import shutil
from pathlib import Path

import pytest
from runs import save_random_model, smoke_config, start, typed

from atod_jax.run.known import require_known, take_known


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [save_random_model(folder / name, seed=k) for k, name in enumerate("st")]


@pytest.fixture(scope="module")
def first(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    start(smoke_config(models, "opd", total_steps=1), folder)
    return folder


def stored(folder, role):
    return {path.name: path.read_bytes() for path in (folder / "evaluations").glob(f"{role}-*")}


def test_a_run_takes_over_what_it_would_have_found(models, first, tmp_path, capsys):
    c = smoke_config(models, "atod", total_steps=1)
    start(c, tmp_path / "own")
    capsys.readouterr()
    c.eval.known = str(first)
    start(c, tmp_path / "taken")
    assert "start:" not in capsys.readouterr().out
    for role, files in (("start", 2), ("teacher", 2), ("final", 2)):
        assert len(stored(tmp_path / "taken", role)) == files
        assert stored(tmp_path / "taken", role) == stored(tmp_path / "own", role)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, "are of seed=0, this run has 1; leave eval.known out"),
        ({"eval.temperatures": (0.5,)}, r"eval.temperatures=\(1.0,\), this run has \(0.5,\)"),
        ({"student.path": "household/student"}, "student.path="),
        ({"teacher.path": "household/student"}, "teacher.path="),
        ({"env.max_turns": 4}, "env.max_turns=3, this run has 4"),
        ({"eval.known": "nowhere"}, "eval.known=nowhere holds no run; name the --workdir of one"),
    ],
)
def test_evaluations_of_something_else_are_refused(models, first, changes, words):
    cfg = typed(smoke_config(models), **{"eval.known": str(first), **changes})
    with pytest.raises(ValueError, match=words):
        require_known(cfg)


def test_a_run_without_a_teacher_can_take_the_start(models, first):
    require_known(typed(smoke_config((models[0], ""), "grpo"), **{"eval.known": str(first)}))


def test_an_evaluation_of_weights_that_were_there_before_is_not_taken(models, first, tmp_path):
    cfg = typed(smoke_config(models), **{"eval.known": str(first)})
    target = tmp_path / "teacher-T1.json"
    assert take_known(cfg, "teacher", target)
    assert not take_known(cfg, "final", tmp_path / "final-T1.json")
    for path in target, target.with_suffix(".jsonl.gz"):
        path.unlink()
    weights = Path(models[1], "model.safetensors")
    long_ago = weights.stat().st_mtime - 3600
    shutil.copyfile(weights, tmp_path / "copy")
    os.utime(tmp_path / "copy", (long_ago, long_ago))
    shutil.copy2(tmp_path / "copy", weights)  # looks older than the evaluation
    assert not take_known(cfg, "teacher", target)
    assert not target.exists()
