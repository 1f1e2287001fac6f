"""What runs are called, and which of them may stand side by side."""

from pathlib import Path

import numpy as np
import pytest

from atod_jax.results.intervals import EvalResult
from atod_jax.results.runs import (
    RunRecord,
    labels,
    read_evaluation,
    repeated_seeds,
    sections,
    short,
)

BASE = {
    "algorithm.name": "atod", "env.name": "alfworld", "eval.split": "valid_unseen", "seed": 0,
    "optim.lr": 1e-3, "teacher.path": "household/teacher-mid",
}  # fmt: skip


def make_run(name: str = "", ids: tuple[str, ...] = ("a", "b"), **changes) -> RunRecord:
    """`optim__lr=1` changes optim.lr; None takes the option away."""
    changed = {key.replace("__", "."): value for key, value in changes.items()}
    definition = {k: v for k, v in (BASE | changed).items() if v is not None}
    shape = (1, len(ids))
    result = EvalResult(
        temperature=1.0, task_ids=ids, kinds=("k",) * len(ids), success=np.ones(shape, bool),
        turns=np.ones(shape, np.int32), score=np.ones(shape, np.float32), valid_rate=1.0,
    ) if ids else None  # fmt: skip
    results = {"final": {1.0: result}} if result else {}
    return RunRecord(Path(f"runs/{id(definition)}"), definition, [], results, name)


def found(*runs: RunRecord) -> list[list[tuple[str, list[int]]]]:
    """Per section, what each group is called and its seeds."""
    return [
        [(group.label, [run.seed for run in group.runs]) for group in section.groups]
        for section in sections(runs)
    ]


def headings(*runs: RunRecord) -> list[str]:
    return [section.heading for section in sections(runs)]


def test_runs_that_differ_in_the_seed_only_are_a_group():
    assert found(make_run(seed=1), make_run(seed=0)) == [[("atod", [0, 1])]]


def test_any_other_difference_makes_a_group_of_its_own_and_is_its_name():
    weighted = {"algorithm__atod__weighting": "tdur"}
    uniform = {"algorithm__atod__weighting": "uniform", "optim__lr": 1e-4}
    assert found(make_run(**weighted), make_run(**uniform), make_run(**uniform, seed=1)) == [
        [("atod, lr=0.001, weighting=tdur", [0]), ("atod, lr=0.0001, weighting=uniform", [0, 1])]
    ]


def test_options_of_one_algorithm_are_no_difference_to_another():
    runs = (
        make_run(algorithm__atod__top_rho=1.0),
        make_run(algorithm__name="opd", algorithm__opd__coef=1.0),
    )
    assert found(*runs) == [[("atod", [0]), ("opd", [0])]]


def test_an_option_that_one_of_two_does_not_know_tells_them_apart():
    runs = make_run(), make_run(algorithm__atod__new=[1, 2])
    assert found(*runs) == [[("atod", [0]), ("atod, new=1,2", [0])]]


def test_teachers_of_the_same_name_are_told_apart():
    runs = [make_run(teacher__path=path) for path in ("a/x/teacher", "b/x/teacher", "")]
    assert found(*runs[:2]) == [
        [("atod, teacher=a/x/teacher", [0]), ("atod, teacher=b/x/teacher", [0])]
    ]
    assert found(runs[0], runs[2]) == [
        [("atod, teacher=teacher", [0]), ("atod, teacher=none", [0])]
    ]


def test_option_names_are_as_long_as_they_must_be():
    runs = [
        {"algorithm.name": "a", "x.seed": n, "y.seed": n, "z.deep.on": bool(n)} for n in range(2)
    ]
    assert labels(runs) == [
        "a, x.seed=0, y.seed=0, deep.on=false",
        "a, x.seed=1, y.seed=1, deep.on=true",
    ]
    assert short(["a/b/", "a/c"], "/") == ["b", "c"]
    assert short(["a", "b/a"], "/") == ["a", "b/a"]
    assert short([], "/") == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"env__name": "webshop"}, ["alfworld, valid_unseen, 2 tasks", "webshop, valid_unseen, 2"]),
        ({"eval__split": "train"}, ["alfworld, valid_unseen, 2 tasks", "alfworld, train, 2 tasks"]),
        ({"ids": ("a", "c")}, ["2 tasks, task set=1", "2 tasks, task set=2"]),
        ({"ids": ("a",)}, ["alfworld, valid_unseen, 2 tasks", "alfworld, valid_unseen, 1 tasks"]),
        ({"env__alfworld__seed": 1}, ["2 tasks, seed=0", "2 tasks, seed=1"]),
        ({"eval__tasks": 64}, ["2 tasks, tasks=128", "2 tasks, tasks=64"]),
    ],
)
def test_other_tasks_are_another_section(change, expected):
    first = make_run(env__alfworld__seed=0, eval__tasks=128)
    other = make_run(**{"env__alfworld__seed": 0, "eval__tasks": 128} | change)
    assert len(found(first, other)) == 2
    for heading, part in zip(headings(first, other), expected, strict=True):
        assert part in heading


def test_a_run_without_evaluations_goes_with_those_of_its_settings():
    assert found(make_run(), make_run(ids=(), seed=1)) == [[("atod", [0, 1])]]
    assert headings(make_run(ids=())) == ["alfworld, valid_unseen"]


def test_names_that_were_chosen_are_used_and_keep_runs_apart():
    assert found(make_run("before"), make_run("after"), make_run("after", seed=1)) == [
        [("before", [0]), ("after", [0, 1])]
    ]
    assert found(make_run("mine", optim__lr=1.0), make_run()) == [
        [("mine", [0]), ("atod, lr=0.001", [0])]
    ]
    with pytest.raises(ValueError, match=r"name 'x' is given to .* \(optim\.lr\); give each"):
        sections([make_run("x"), make_run("x", optim__lr=1.0)])


def test_equal_seeds_are_found():
    (section,) = sections([make_run(), make_run(), make_run(seed=1)])
    assert {seed: len(runs) for seed, runs in repeated_seeds(section.groups[0]).items()} == {0: 2}


@pytest.mark.parametrize(
    "text",
    ["", '{"temperature": 1.0', "{}", "[]", "null", "\xff", '{"temperature": null}', "[" * 100_000],
)
def test_a_damaged_evaluation_is_named(tmp_path, text):
    (tmp_path / "start-T1.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"start-T1.json .*; delete it, and the run plays it"):
        read_evaluation(tmp_path / "start-T1.json")
