"""`--dry_run` from the command line inwards: what it prints, and how it refuses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from atod_jax import dry_run
from atod_jax.estimate.hardware import parse
from configs import alfworld, household

REPO = Path(__file__).resolve().parents[1]


def released(**changes):
    c = alfworld.get_config()
    c.student.path, c.teacher.path = "Qwen/Qwen3-1.7B", "Qwen/Qwen3-4B"
    c.student.dtype = c.teacher.dtype = "bfloat16"
    c.update_from_flattened_dict(changes)
    return c


def test_everything_is_shown(capsys):
    dry_run.main(released(**{"mesh.data": 1, "mesh.fsdp": -1, "packing.micro_rows": 64}), "h100-8")
    shown = capsys.readouterr().out
    for part in (
        '"anneal_steps"',  # the config
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
    c.update_from_flattened_dict(
        {key: int(value) if value.isdigit() else value for key, value in flags.items()}
    )
    dry_run.main(c, "v5e-16")


def test_no_setting_helps_a_device_that_is_too_small():
    with pytest.raises(ValueError, match="take more devices"):
        dry_run.main(released(), "v5e-1")


def test_a_shipped_model_is_compiled_here(capsys):
    c = household.get_config("")
    c.sampling.max_new_tokens, c.packing.micro_rows, c.packing.minibatch_rows = 4, 8, 8
    dry_run.main(c, "cpu")
    assert "compiled here" in capsys.readouterr().out


def test_a_mesh_for_other_devices_is_refused():
    with pytest.raises(ValueError, match=r"needs 4 devices, --hardware has 16 x v5e"):
        dry_run.plan_of(released(**{"mesh.data": 4}), parse("v5e-16"))


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
