"""`--dry_run` from the command line inwards: what it prints, and how it refuses."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from runs import typed

from atod_jax.estimate import dry_run, phases
from atod_jax.estimate.hardware import Chip, Hardware
from atod_jax.estimate.remedies import remedies
from atod_jax.estimate.text import duration
from atod_jax.run import batch
from configs import alfworld, household

REPO = Path(__file__).resolve().parents[2]
SMALL = {"sampling.max_new_tokens": 4, "packing.micro_rows": 8, "packing.minibatch_rows": 8}
HERE = np.array(jax.devices())


def small(**changes):
    """The household run, as small as its programs can be."""
    return typed(household.get_config("teacher=mid"), **SMALL | changes)


def released(**changes):
    c = alfworld.get_config()
    c.student.path, c.teacher.path = "Qwen/Qwen3-1.7B", "Qwen/Qwen3-4B"
    return typed(c, **changes)


def test_a_run_is_compiled_for_the_devices_here(capsys):
    dry_run.main(small(), "local", details=True)
    shown = capsys.readouterr()
    assert shown.out.startswith("fits 8 x cpu: ")
    for part in (*phases.PLAYING, "student scoring", "teacher scoring", "gradient", "params/last"):
        assert part in shown.out, part
    assert '"micro_rows": 8' in shown.out  # the config
    assert "compiling 6 of 6: optimiser step" in shown.err


def test_nothing_is_shown_in_full_unless_asked(capsys):
    dry_run.main(small(), "local")
    assert len(capsys.readouterr().out.splitlines()) < 12


def tiny(memory):
    return Hardware(Chip("cpu", 1e12, 1e12, memory, 1e11, 1e10, 8), 8)


def test_what_does_not_fit_names_the_way_out():
    """Smaller pieces are tried until they fit, and what is advised does."""
    cfg = small(**{"packing.micro_rows": 64, "packing.minibatch_rows": 64})
    found = dry_run.compiled(cfg, tiny(1e12), HERE, only=[phases.GRADIENT])
    hardware = tiny(0.8 * found[0].needed)
    advised = dry_run.advice(cfg, found, hardware, devices=HERE)
    assert advised.startswith("it fits (")
    flags = [word for word in advised.split() if word.startswith("--config.")]
    changes = dict(flag.removeprefix("--config.").split("=") for flag in flags)
    values = {key: int(value) if value.isdigit() else value for key, value in changes.items()}
    (then,) = dry_run.compiled(
        small(**{"packing.micro_rows": 64, "packing.minibatch_rows": 64} | values),
        hardware, HERE, only=[phases.GRADIENT],
    )  # fmt: skip
    assert then.needed <= hardware.chip.memory


def test_what_a_compiler_refuses_to_make_counts_with_what_it_says(monkeypatch):
    (phase,) = [p for p in phases.plan(small(), HERE) if p.name == phases.GRADIENT]

    def lower(*args, **options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: temporaries (33.5G) exceed (15.75G)")

    refused = phase.program._replace(run=SimpleNamespace(lower=lower))
    found = phases.compiled(phase._replace(program=refused), tiny(1e9))
    assert found.cost.memory.temporary == 33.5 * 2**30
    assert found.needed > 33.5 * 2**30
    assert "| -" in dry_run.table([found], tiny(1e9).chip)


def test_no_setting_helps_a_device_that_is_too_small(monkeypatch):
    monkeypatch.setattr(dry_run, "MOST_TRIES", 2)
    cfg = small()
    found = dry_run.compiled(cfg, tiny(1.0), HERE, only=[phases.STUDENT_SCORING])
    assert "take more devices" in dry_run.advice(cfg, found, tiny(1.0), devices=HERE)


def test_every_model_is_counted_where_it_is():
    layouts = {"mesh.data": 1, "mesh.fsdp": -1, "teacher.devices": 4, "teacher.dtype": "bfloat16"}
    layouts |= {"sampling.mesh.data": 2, "sampling.mesh.tensor": 2, "teacher.mesh.tensor": 2}
    layouts |= {"packing.micro_rows": 64, "teacher.mesh.data": 2}
    planned = {p.name: p for p in phases.plan(released(**layouts), HERE)}
    playing, judge = planned[phases.WRITING], planned[phases.TEACHER_SCORING]
    gradient, step = planned[phases.GRADIENT], planned[phases.STEP]
    assert dict(playing.program.mesh.shape) == {"data": 2, "fsdp": 1, "tensor": 2, "expert": 1}
    assert dict(judge.program.mesh.shape) == {"data": 2, "fsdp": 1, "tensor": 2, "expert": 1}
    assert (judge.whose, step.whose) == ("teacher", "student")
    assert judge.program.given == pytest.approx(4.02e9, rel=0.01)  # 4B of two bytes by two
    assert judge.beside == 0
    assert step.program.given == pytest.approx(3 * 1.72e9, rel=0.01)  # 1.7B of 12 bytes by four
    assert step.beside == pytest.approx(1.72e9, rel=0.01)  # the weights at the start
    assert gradient.beside == pytest.approx(3 * 1.72e9, rel=0.01)  # and the moments


def test_lines_of_several_turns_divide_over_the_meshes_of_both_models(monkeypatch):
    """8 turns are one line, which the teacher's 8 data shards could not share."""
    monkeypatch.setattr(batch, "turns_together", lambda model: 8)
    layouts = {"mesh.data": 1, "mesh.tensor": 8, "teacher.mesh.data": 8}
    planned = {
        p.name: p for p in phases.plan(released(**layouts, **{"packing.micro_rows": 8}), HERE)
    }
    judge, gradient = (planned[p].program for p in (phases.TEACHER_SCORING, phases.GRADIENT))
    for rows in (judge.shapes()[-1], gradient.shapes()[-1].rows):
        assert rows.lines.tokens.shape[0] == 8
    assert gradient.options["room"].head == 8 * judge.options["room"].head


@pytest.mark.parametrize(("dtype", "gigabytes"), [("int8", 4.42), ("bfloat16", 8.04)])
def test_a_teacher_is_as_large_as_it_is_kept(dtype, gigabytes):
    planned = {p.name: p for p in phases.plan(released(**{"teacher.dtype": dtype}), HERE)}
    found = planned[phases.TEACHER_SCORING].program.given
    assert found == pytest.approx(1e9 * gigabytes, rel=0.01)


def test_an_exact_kl_keeps_the_states_of_all_its_tokens():
    """1,000 turns of 512 tokens and 2,560 numbers of 4 bytes, whole and in pieces, on 8 devices."""
    turns = {"rollout.tasks": 5, "rollout.group": 4, "env.max_turns": 50}
    turns |= {"algorithm.name": "opd", "teacher.dtype": "float32"}
    plans = [
        phases.plan(released(**turns, **{"algorithm.opd.exact": exact}), HERE)
        for exact in (False, True)
    ]
    sampled, whole = ({p.name: p for p in some} for some in plans)
    bytes_on_a_device = 1024 * 512 * 2560 * 4 / 8  # in micro-batches of 256
    for name, times in [(phases.TEACHER_SCORING, 1), (phases.GRADIENT, 2), (phases.STEP, 2)]:
        more = whole[name].beside - sampled[name].beside
        assert more == pytest.approx(times * bytes_on_a_device)
    assert whole[phases.STUDENT_SCORING].beside == sampled[phases.STUDENT_SCORING].beside


def test_adapters_leave_the_rest_frozen():
    rank = {"student.lora_rank": 16}
    (gradient,) = [p for p in phases.plan(released(**rank), HERE) if p.name == phases.GRADIENT]
    assert gradient.program.given == pytest.approx(1.72e9 * 4 + 17.4e6 * 4, rel=0.01)


def test_remedies_begin_with_the_harmless_ones():
    cfg = released(**{"student.remat": "dots", "teacher.dtype": "float32"})
    first, *others = remedies(cfg, phases.GRADIENT, 8)
    assert first == {"mesh.data": 1, "mesh.fsdp": 8} or cfg.mesh.data == 1
    assert {"student.remat": "full"} in others
    assert {"packing.micro_rows": cfg.packing.micro_rows // 2} in others
    playing = list(remedies(cfg, phases.WRITING, 8))
    assert {"sampling.rows": 64} in playing
    assert not any("packing.micro_rows" in change for change in playing)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling.mesh.data": 2}, r"mesh .* needs 2 devices"),
        ({"teacher.mesh.tensor": 4}, r"mesh .* needs 4 devices"),
        ({"teacher.devices": 8}, r"teacher\.devices=8: there are 8 devices"),
        ({"mesh.data": 8, "packing.micro_rows": 4}, r"micro_rows=4 is not divisible by the 8"),
        (
            {"teacher.devices": 3, "packing.micro_rows": 5, "packing.minibatch_rows": 5},
            r"the 3 data shards of .* use 15 or",
        ),
    ],
)
def test_layouts_for_other_devices_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        phases.plan(released(**changes), HERE)


@pytest.mark.parametrize(("algorithm", "scored"), [("atod", True), ("sdar", True), ("grpo", False)])
def test_who_scores_as_the_teacher(algorithm, scored):
    names = [p.name for p in phases.plan(released(**{"algorithm.name": algorithm}), HERE)]
    assert (phases.TEACHER_SCORING in names) == scored


def test_a_name_that_is_no_model_is_refused():
    with pytest.raises(FileNotFoundError, match=r"student\.path='nowhere'"):
        phases.plan(released(**{"student.path": "nowhere"}), HERE)


def test_the_command_needs_no_workdir_and_says_how_to_get_a_compiler(monkeypatch):
    command = [sys.executable, "-m", "atod_jax.train", "--config=configs/alfworld.py:smoke"]
    command += ["--config.student.path=Qwen/Qwen3-4B", "--dry_run", "--hardware=v5x"]
    done = subprocess.run(
        command, cwd=REPO, capture_output=True, text=True, env=os.environ | {"XLA_FLAGS": ""}
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: --hardware=v5x: choose local, or one of v5e")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.04, "0.04 s"), (119.0, "119 s"), (150.0, "2.50 minutes"), (7200, "2.00 hours")],
)
def test_durations(seconds, said):
    assert duration(seconds) == said
