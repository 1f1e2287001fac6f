"""The order of a study's runs, their commands, and the shipped study as a whole."""

import pytest

from atod_jax import config
from atod_jax.config import files
from atod_jax.studies.plan import Cell, Job, Setting, Study, to_make
from configs.study import METHODS, get_study


def make_study(*jobs, cells=()):
    return Study("t", "a", (Setting("s", "about"),), tuple(jobs), tuple(cells))


def test_every_run_comes_after_what_it_needs_and_seed_by_seed():
    jobs = [
        Job("b-1", "c", 1, needs=("a-1",)), Job("a-1", "c", 1), Job("b-0", "c", 0, needs=("a-0",)),
        Job("a-0", "c", 0), Job("tried", "c", 0, needs=("a-0",)),
        Job("c-1", "c", 1, needs=("b-1",), tuned={"optim.lr": ("tried",)}),
    ]  # fmt: skip
    names = [job.name for job in to_make(jobs)]
    assert names == ["a-0", "b-0", "tried", "a-1", "b-1", "c-1"]
    only = [job.name for job in to_make(jobs, ["*-1"])]
    assert only == ["a-0", "tried", "a-1", "b-1", "c-1"]  # what it needs of another seed too
    there = ("b-1", "tried").__contains__
    missing = to_make(jobs, ["c-1"], is_found=there, is_made=there)
    assert [job.name for job in missing] == ["c-1"]  # not what those needed
    kept = to_make(jobs, ["c-1"], is_found=there)  # the model of b-1 is gone, tried has been read
    assert [job.name for job in kept] == ["a-1", "b-1", "c-1"]
    assert to_make(jobs, ["c-1"], is_found=lambda name: name == "c-1") == []
    with pytest.raises(ValueError, match=r"'d-\*' is the name of no run of the study, such as b-1"):
        to_make(jobs, ["a-0", "d-*"])
    late = [Job("a-0", "c", 0, tuned={"optim.lr": ("tried",)}), Job("a-1", "c", 1),
            Job("tried", "c", 9, {"optim.lr": 1}, needs=("b-9",)), Job("b-9", "c", 9)]  # fmt: skip
    assert [job.name for job in to_make(late)] == ["b-9", "tried", "a-0", "a-1"]
    waiting = [Job("x", "c", 0, needs=("y",)), Job("y", "c", 0, needs=("x",))]
    with pytest.raises(ValueError, match="wait for each other"):
        to_make(waiting)


def test_commands_name_the_folder_of_the_study():
    options = {"student.path": "{out}/models/a", "optim.lr": 1e-4, "eval.temperatures": (1.0, 0.4)}
    job = Job("s/x-0", "household:steps=3", 0, options)
    assert job.command("/o", {"optim.lr": 5e-4}) == [
        "--config=household:steps=3", "--config.student.path=/o/models/a",
        "--config.optim.lr=0.0005", "--config.eval.temperatures=1.0,0.4", "--workdir=/o/runs/s/x-0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("jobs", "cells", "words"),
    [
        ([Job("a", "c", 0)] * 2, (), "twice there: a"),
        ([Job("a", "c", 0, needs=("b",))], (), "the job 'b'"),
        ([Job("a", "c", 0, tuned={"x": ("b",)})], (), "the job 'b'"),
        ([Job("a", "c", 0)], [Cell("s", "m", {0: "b"})], "the job 'b'"),
        ([Job("a", "c", 0)], [Cell("z", "m", {0: "a"})], "the setting 'z'"),
        ([Job("a", "c", 0)], [Cell("s", "m", {0: "a"})] * 2, "twice there: s, m"),
        ([Job("../a", "c", 0)], (), "a job '../a'"),
        ([Job("/a", "c", 0)], (), "a job '/a'"),
        ([Job("", "c", 0)], (), "a job ''"),
        ([Job("a", "c", None)], (), "a: give a whole number as seed"),
        ([Job("a", "c", 0, tuned={"x": ()})], (), "a: no job tries values of x"),
    ],
)
def test_what_a_study_names_must_be_there(jobs, cells, words):
    with pytest.raises(ValueError, match=words):
        make_study(*jobs, cells=cells)


@pytest.mark.parametrize("arg", ["quick", "seeds=1,steps=20"])
def test_every_run_of_the_shipped_study_is_a_valid_one(arg):
    """Their options exist and may be combined; what is started from is of the same seed; methods
    that are compared have equal budgets."""
    study = get_study(arg)
    budgets = {}
    for job in to_make(study.jobs):
        if job.program == "signals":
            step = int(job.checkpoint.rpartition("/")[2])
            assert step % METHODS["ATOD"]["save_every"] == 0  # a step that is kept
            continue
        c = files.load(job.config.format(out="/o"))
        c.update_from_flattened_dict(dict(job.options))
        config.resolve(c)
        assert c.seed == job.seed
        assert all(name.endswith(f"-{job.seed}") for name in job.needs)
        budget = c.total_steps, c.rollout.tasks, c.rollout.group
        budgets.setdefault(job.name.partition("/")[0], set()).add(budget)
    for setting in study.settings:
        methods = {cell.method for cell in study.cells_of(setting.name)} | {"teacher"}
        assert {method for pair in setting.contrasts for method in pair} <= methods
        assert len(budgets[setting.name]) == 1
    ends = {cell.setting for cell in study.cells}
    assert ends == {setting.name for setting in study.settings}
    assert arg == "quick" or budgets["mid"] == budgets["tuning"] == {(20, 12, 8)}
