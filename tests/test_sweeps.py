"""Sweeps: every printed command is a run that validates, in a workdir of its own."""

import importlib
import shlex
import sys

import pytest

from atod_jax import config
from configs import sweeps

EVERY = [(name, task) for name in sweeps.SWEEPS for task in sweeps.TASKS]


def resolve(run: sweeps.Run):
    """The config that the options of a run make."""
    file, _, arg = run["config"].partition(":")
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    cfg = module.get_config(arg)
    cfg.update_from_flattened_dict(
        {k.removeprefix("config."): v for k, v in run.items() if k.startswith("config.")}
    )
    return cfg


@pytest.mark.parametrize(("name", "task"), EVERY)
def test_runs_validate_and_have_their_own_workdirs(name, task):
    runs = sweeps.SWEEPS[name](task)
    assert len({run["workdir"] for run in runs}) == len(runs)
    for run in runs:
        cfg = resolve(run)
        config.resolve(cfg)
        assert cfg.env.name == task


def test_the_main_table_is_complete():
    configs = [resolve(run) for run in sweeps.main_table("webshop")]
    cells = {(c.student.path, c.algorithm.name) for c in configs}
    students = ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B", "Qwen/Qwen3-4B")
    algorithms = ("grpo", "sdar", "opd", "sod", "tcod", "atod")
    table = {(s, a) for s in students for a in algorithms}
    assert cells == table | {("Qwen/Qwen3-30B-A3B", "grpo")}
    assert len(configs) == len(cells)


@pytest.mark.parametrize("task", sweeps.TASKS)
def test_students_learn_from_the_teachers_that_are_trained(task):
    exported = {c.export: c.student.path for c in map(resolve, sweeps.teachers(task))}
    for cfg in map(resolve, sweeps.main_table(task) + sweeps.ablations(task)):
        if cfg.algorithm.name in ("grpo", "sdar"):
            assert cfg.teacher.path == ""
        else:
            large = cfg.student.path == "Qwen/Qwen3-4B"
            model = "Qwen/Qwen3-30B-A3B" if large else "Qwen/Qwen3-4B"
            assert exported[cfg.teacher.path] == model


def test_ablations_take_one_part_away():
    small = [resolve(run) for run in sweeps.ablations("alfworld")][:4]
    atod = [cfg.algorithm.atod for cfg in small]
    assert [a.weighting for a in atod] == ["tdur", "tdur", "token", "uniform"]
    assert [a.anneal.kind for a in atod] == ["linear", "constant", "linear", "linear"]
    assert {(a.anneal.kappa_start, a.anneal.rho_start) for a in atod} == {(1.0, 1.0)}


def test_sweeps_share_the_runs_they_have_in_common():
    table = {run["workdir"]: run for run in sweeps.main_table("alfworld")}
    shared = [r for r in sweeps.ablations("alfworld") if r["workdir"] in table]
    assert len(shared) == 3
    assert all(table[run["workdir"]] == run for run in shared)


def test_commands_are_printed_one_per_line(monkeypatch, capsys):
    extra = "--config.env.alfworld.games=/a folder"
    monkeypatch.setattr(sys, "argv", ["sweeps", "ablations", "--task=alfworld", extra])
    sweeps.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12
    assert shlex.split(lines[-1]) == [
        ".venv/bin/python", "-m", "atod_jax.train",
        "--config=configs/alfworld.py:student=4b,algo=atod",
        "--workdir=runs/alfworld-4b-atod-no-tdur",
        "--config.teacher.path=runs/teachers/alfworld-large",
        "--config.algorithm.atod.weighting=uniform", extra,
    ]  # fmt: skip


@pytest.mark.parametrize("arguments", [["tables"], [], ["ablations", "--task=chess"]])
def test_unknown_names_are_refused_with_what_there_is(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sweeps", *arguments])
    with pytest.raises(SystemExit, match="2"):
        sweeps.main()
    assert capsys.readouterr().err.count("usage:") == 1
