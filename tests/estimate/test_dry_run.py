"""`--dry_run` from the command line inwards: what it prints, and how it refuses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import typed

from atod_jax.estimate import dry_run
from atod_jax.estimate.hardware import parse
from configs import alfworld, household

REPO = Path(__file__).resolve().parents[2]


def released(**changes):
    c = alfworld.get_config()
    c.student.path, c.teacher.path = "Qwen/Qwen3-1.7B", "Qwen/Qwen3-4B"
    c.student.dtype = c.teacher.dtype = "bfloat16"
    return typed(c, **changes)


def test_everything_is_shown(capsys):
    dry_run.main(released(**{"mesh.data": 1, "mesh.fsdp": -1, "packing.micro_rows": 64}), "h100-8")
    shown = capsys.readouterr().out
    for part in (
        '"micro_rows": 64',  # the config
        "layers/mlp/down/kernel",
        "1,720,574,976 parameters",
        "4,022,468,096 parameters",
        "Adam moments",
        "of 80.0 GB per device",
        "teacher scoring",
        "steps per hour",
    ):
        assert part in shown


def test_what_does_not_fit_names_the_way_out():
    c = released()
    with pytest.raises(ValueError, match=r"does not fit 16 x v5e: needs .* of 16\.0 GB") as error:
        dry_run.main(c, "v5e-16")
    assert "--config.mesh.data=1 --config.mesh.fsdp=16" in str(error.value)
    flags = dict(
        word.removeprefix("--config.").split("=")
        for word in str(error.value).split()
        if word.startswith("--config.")
    )
    values = {key: int(value) if value.isdigit() else value for key, value in flags.items()}
    dry_run.main(released(**values), "v5e-16")


def test_no_setting_helps_a_device_that_is_too_small():
    with pytest.raises(ValueError, match="take more devices"):
        dry_run.main(released(), "v5e-1")


def test_a_shipped_model_is_compiled_here(capsys):
    c = household.get_config("")
    c.sampling.max_new_tokens, c.packing.micro_rows, c.packing.minibatch_rows = 4, 8, 8
    dry_run.main(typed(c), "cpu")
    assert "compiled here" in capsys.readouterr().out


def test_a_mesh_for_other_devices_is_refused():
    with pytest.raises(ValueError, match=r"needs 4 devices, --hardware has 16 x v5e"):
        dry_run.plan_of(released(**{"mesh.data": 4}), parse("v5e-16"))


def test_every_model_is_counted_where_it_is(capsys):
    layouts = {"mesh.data": 1, "mesh.fsdp": -1, "packing.micro_rows": 64}
    layouts |= {"sampling.mesh.data": 2, "sampling.mesh.tensor": 2, "teacher.rules.mlp": ""}
    layouts |= {"teacher.devices": 4, "teacher.mesh.tensor": 4}
    dry_run.main(released(**layouts), "h200-8")
    shown = capsys.readouterr().out
    for part in (
        "mesh: data 1, fsdp 4, tensor 1, expert 1",
        "mesh of the student while it samples: data 2, fsdp 1, tensor 2, expert 1",
        "mesh of the teacher, on devices of its own: data 1, fsdp 1, tensor 4, expert 1",
        "| mlp          | tensor         | -              |",
        "| 6144 x 512          | 3072 x 2048         |",  # of an MLP: trained, sampling
        "35 x 2560 x 9728",  # of the teacher
        "weights to play",
        "per device of the teacher's 4, in the",
        "teacher scoring on its own 4",
    ):
        assert part in shown, part


def test_the_layout_that_does_not_fit_is_named():
    teacher = {"teacher.devices": 16, "teacher.dtype": "float32", "teacher.path": "Qwen/Qwen3-32B"}
    c = released(**{"mesh.data": 1, "mesh.fsdp": -1} | teacher)
    with pytest.raises(ValueError, match=r"per device of the teacher's 16 in the teacher"):
        dry_run.require_fit(dry_run.plan_of(c, parse("v5e-32")), parse("v5e-32"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling.mesh.data": 2}, r"sampling\.mesh .* needs 2 devices, --hardware has 16 x v5e;"),
        ({"teacher.mesh.tensor": 4}, r"teacher\.mesh .* needs 4 devices"),
        ({"teacher.devices": 8, "teacher.mesh.fsdp": 4}, r"has 16 x v5e, 8 of them for this mesh"),
        ({"teacher.devices": 16}, r"teacher\.devices=16: there are 16 devices"),
    ],
)
def test_layouts_for_other_devices_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dry_run.plan_of(released(**changes), parse("v5e-16"))


def test_the_teacher_s_rows_must_divide():
    changes = {"mesh.data": 8, "mesh.tensor": 2, "teacher.mesh.data": 16, "packing.micro_rows": 24}
    changes["packing.minibatch_rows"] = 48
    with pytest.raises(ValueError, match=r"micro_rows=24 is not divisible by the 16 .* teacher"):
        dry_run.plan_of(released(**changes), parse("v5e-16"))


@pytest.mark.parametrize(
    ("algorithm", "scorer"), [("atod", "teacher"), ("sdar", "student"), ("grpo", "")]
)
def test_an_algorithm_says_who_scores_as_the_teacher(algorithm, scorer):
    plan = dry_run.plan_of(released(**{"algorithm.name": algorithm}), parse("v5e-16"))
    assert plan.scored_by == scorer


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"packing\.micro_rows=256 is not divisible by the 512"):
        dry_run.plan_of(released(), parse("v5e-512"))


def test_a_name_that_is_no_model_is_refused():
    with pytest.raises(FileNotFoundError, match=r"student\.path='nowhere'"):
        dry_run.plan_of(released(**{"student.path": "nowhere"}), parse("v5e-16"))


def test_the_command_needs_no_workdir_and_exits_with_2():
    command = [sys.executable, "-m", "atod_jax.train", "--config=configs/alfworld.py:smoke"]
    command += ["--config.student.path=Qwen/Qwen3-4B", "--dry_run", "--hardware=v5e-1"]
    done = subprocess.run(
        command, cwd=REPO, capture_output=True, text=True, env=os.environ | {"XLA_FLAGS": ""}
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: does not fit 1 x v5e")
    assert "Traceback" not in done.stderr
