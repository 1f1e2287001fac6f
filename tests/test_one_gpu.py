"""launch/one_gpu.sh: what it plans, what it refuses, how its stages end; slow: the whole of it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_launch_cluster import Desk

from atod_jax import config, train
from atod_jax.run import cli
from configs import one_gpu, real

REPO = Path(__file__).resolve().parents[1]


def definitions(stages):
    """What defines the run of each stage, by its name."""
    found = {}
    for stage in stages:
        _, cfg = cli.parse(train.PROGRAM, stage.train[len(one_gpu.PYTHON) + 1 :])
        found[stage.name] = config.defining(cfg)
    return found


@pytest.mark.parametrize("size", ["gpu", "tiny"])
def test_all_stages_are_valid_runs_of_one_comparison(size, tmp_path):
    stages = one_gpu.plan(tmp_path, real.MODELS["tiny"], games="games", size=size, minutes=12)
    assert sum(s.seconds for s in stages) + one_gpu.SECONDS_TO_COMPARE == pytest.approx(720)
    runs = definitions(stages)
    student, teacher = runs["student"], runs["teacher"]
    assert {k for k in student if student[k] != teacher[k]} == {"total_steps"}
    assert teacher["total_steps"] > student["total_steps"]
    for name in ("atod", "opd", "grpo"):  # the same student and budget
        own = {"algorithm.name", "teacher.path", "teacher.dtype"}
        for key in runs[name].keys() & runs["grpo"].keys() - own:
            assert runs[name][key] == runs["grpo"][key], key
        assert runs[name]["student.path"] == str(stages[0].model)
    assert runs["atod"]["teacher.path"] == runs["opd"]["teacher.path"] == str(stages[1].model)
    places = ("env.alfworld.games", "eval.split", "eval.final_tasks", "env.max_turns")
    assert len({tuple(run[p] for p in places) for run in runs.values()}) == 1


MISTAKES = {
    (): "MODEL and GAMES are missing",
    ("smollm2",): "GAMES is missing",
    ("smollm2", "no/such/games"): "GAMES='no/such/games': nothing there",
    ("tests", "README.md"): "MODEL='tests': no Hugging Face folder",
    ("smollm", "README.md"): "MODEL='smollm': no Hugging Face folder",
    ("smollm2", "--tiny"): "--tiny has its own model and games",
    ("--tiny", "--minutes=0"): "--minutes=0: give at least 1",
}


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_mistakes_are_one_line(arguments, capsys, monkeypatch):
    monkeypatch.chdir(REPO)
    with pytest.raises(SystemExit, match="2"):
        one_gpu.main([*arguments, "--plan"])
    said = capsys.readouterr()
    assert MISTAKES[arguments] in said.err
    assert said.err.count("\n") == 1
    assert not said.out


def test_the_script_hands_on_what_it_is_given(tmp_path):
    desk = Desk(tmp_path)
    seen = "import os; print(os.getcwd(), os.environ['PYTHONPATH'].split(':')[0])"
    desk.stand_in(desk.repo / ".venv" / "bin" / "python", seen)
    done = desk.run("one_gpu.sh", "smollm2", "a b")
    assert desk.calls("python") == [["-P", "-m", "configs.one_gpu", "smollm2", "a b"]]
    assert done.stdout.split() == [str(desk.repo)] * 2
    desk.run("one_gpu.sh", "--tiny")
    installed = [call for (call,) in desk.calls("venv.sh")]
    assert installed == ["requirements.txt launch/cuda.txt", "requirements.txt"]


def stage(folder: Path, code: str, *, seconds: float = 30) -> one_gpu.Stage:
    """One whose training is a piece of Python."""
    run, model = folder / "run", folder / "model"
    pre = (
        f"import pathlib, sys, time; run, model = map(pathlib.Path, ({str(run)!r}, {str(model)!r}))"
    )
    made = "model.mkdir(); (model / 'config.json').touch()"
    begun = "run.mkdir(exist_ok=True); (run / 'run_config.json').touch()"
    train, export = (
        [sys.executable, "-c", f"{pre}\n{text}"] for text in (code.format(**locals()), made)
    )
    return one_gpu.Stage("student", seconds, train, run, export, model)


def test_a_stage_is_over_when_its_model_is_there(tmp_path):
    one = stage(tmp_path, "{made}")
    one_gpu.carry_out(one)
    one_gpu.carry_out(one._replace(train=["/no/such/program"]))  # is not started again


def test_a_stage_out_of_time_leaves_the_model_so_far(tmp_path):
    one = stage(tmp_path, "{begun}; time.sleep(60)", seconds=1)
    one_gpu.carry_out(one)
    assert one_gpu.is_done(one)


def test_a_stage_without_a_step_leaves_no_model(tmp_path):
    with pytest.raises(SystemExit, match=r"student finished no step in 1 s; .* a larger --minutes"):
        one_gpu.carry_out(stage(tmp_path, "time.sleep(60)", seconds=1))
    assert not (tmp_path / "model").exists()


def test_a_stage_that_fails_stops_everything(tmp_path):
    with pytest.raises(SystemExit, match="143"):
        one_gpu.carry_out(stage(tmp_path, "{begun}; sys.exit(143)"))
    assert not (tmp_path / "model").exists()


def test_another_model_needs_another_folder(tmp_path, capsys):
    stages = one_gpu.plan(tmp_path, "household/teacher-mid", size="tiny")
    _, cfg = cli.parse(train.PROGRAM, stages[0].train[len(one_gpu.PYTHON) + 1 :])
    stages[0].workdir.mkdir(parents=True)
    one_gpu.workdirs.pin(stages[0].workdir, cfg)
    with pytest.raises(SystemExit, match="2"):
        one_gpu.main(["--tiny", "--plan", f"--out={tmp_path}"])
    assert "begun with the model 'household/teacher-mid'" in capsys.readouterr().err


@pytest.mark.slow
def test_everything_with_tiny_models_interrupted_once(tmp_path):
    command = [sys.executable, "-P", "-m", "configs.one_gpu", "--tiny", "--minutes=30"]
    environment = os.environ | {"PYTHONPATH": str(REPO), "XLA_FLAGS": ""}
    options = {"cwd": tmp_path, "env": environment, "stderr": subprocess.PIPE, "text": True}
    out = tmp_path / "runs" / "one_gpu_tiny"
    with subprocess.Popen(command, **options) as first:
        while not (out / "runs" / "teacher" / "run_config.json").is_file():
            assert first.poll() is None
            time.sleep(0.1)
        first.send_signal(signal.SIGTERM)
        said = first.communicate()[1]
    assert first.returncode == 143
    assert "the same command goes on" in said
    assert not (out / "models" / "teacher").exists()
    again = subprocess.run(command, **options)
    assert again.returncode == 0, again.stderr[-2000:]
    assert f"have {out / 'models' / 'student'}" in again.stderr
    assert all((out / "models" / n / "model.safetensors").is_file() for n in one_gpu.SHARES)
    page = (out / "comparison.md").read_text()
    assert page.count("\n## ") == 1  # all runs play the same games
    assert all(f"\n| {name} | 0 |" in page for name in one_gpu.SHARES)
    assert "unfinished" not in page
    assert (out / "comparison.png").is_file()
    once_more = subprocess.run(command, **options)
    assert once_more.stderr.count("have ") == len(one_gpu.SHARES)
