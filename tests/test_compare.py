"""The comparison page: what may be compared is, what may not stands apart, and nothing is nan."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from made_runs import make_run, result
from matplotlib.image import imread

from atod_jax.compare import compare, main
from atod_jax.results.plots import COLOURS
from atod_jax.run.workdir import read_record


def page(tmp_path, *arguments: str) -> str:
    out = tmp_path / "out"
    runs = [read_record(argument) for argument in arguments]
    text = compare(runs, out).read_text(encoding="utf-8")
    assert "nan" not in text
    pictures = re.findall(r"\]\((.*\.png)\)", text)
    assert bool(pictures) == any(run.curve for run in runs)
    for picture in pictures:
        assert (out / picture).stat().st_size > 5000
    return text


def rows(text: str, start: str) -> list[list[str]]:
    """The cells of the table rows that begin so."""
    lines = [x.strip("| ").split(" | ") for x in text.splitlines() if x.startswith(f"| {start} |")]
    return [[cell.strip() for cell in line] for line in lines]


def test_seeds_share_a_line_and_numbers_are_those_of_the_runs(tmp_path):
    text = page(
        tmp_path,
        make_run(tmp_path / "a", seed=0, solved=0.75),
        make_run(tmp_path / "b", seed=1, solved=0.65),
        make_run(tmp_path / "c", algorithm="opd", seed=0, solved=0.4),
    )
    (atod,) = [x for x in text.splitlines() if x.startswith("| atod |") and "75.0 / 65.0" in x]
    assert "+20.0 [" in atod  # (0.75 + 0.65) / 2 - 0.5
    assert "| 70.0 [" in atod
    assert any(x.startswith("| opd |") and "-10.0 [" in x for x in text.splitlines())
    assert "| atod | kl/verb | 25.50 | 15.50 | 5.50 | 5.50 |" in text
    assert "rollout/mixed_groups" not in text  # it was never finite
    assert "| atod | 0 | 23 | 47 | 70 |" in text


def test_different_settings_are_different_lines(tmp_path):
    text = page(
        tmp_path,
        make_run(tmp_path / "a", own={"weighting": "tdur"}, lr=5e-4, solved=0.6),
        make_run(tmp_path / "b", own={"weighting": "uniform"}, lr=1e-4, solved=0.2),
    )
    assert "| atod, weighting=tdur, lr=0.0005 | 0 | 20 | 40 | 60 |" in text
    assert "| atod, weighting=uniform, lr=0.0001 | 0 | 7 | 13 | 20 |" in text
    assert " / " not in text.split("### After training")[1].split("###")[0]


def test_names_may_be_given(tmp_path):
    a, b = make_run(tmp_path / "lr=1", solved=0.6), make_run(tmp_path / "b", lr=1.0)
    text = page(tmp_path, f"mine={a}", b)
    assert rows(text, "mine")
    assert rows(text, "atod, lr=1.0")
    assert "| atod, lr=0.001 | 0 |" in page(tmp_path, a, b)  # a folder with = in its name


def test_environments_and_task_sets_stand_apart(tmp_path):
    text = page(
        tmp_path,
        make_run(tmp_path / "a", env="guess", tasks=5, prefix="guess-", solved=1.0),
        make_run(tmp_path / "b", env="alfworld"),
    )
    first, second = text.split("\n## ")[1:]
    assert first.startswith("guess, valid, 5 tasks")
    assert second.startswith("alfworld, valid, 40 tasks")
    assert rows(first, "atod")[1][3] == "100.0"
    assert rows(second, "atod")[1][3] == "70.0"
    assert "](comparison.png)" in first
    assert "](comparison-2.png)" in second


def test_runs_of_different_lengths_share_the_steps_that_they_have(tmp_path):
    text = page(
        tmp_path,
        make_run(tmp_path / "a", steps=60, solved=0.6),
        make_run(tmp_path / "b", steps=6, every=3, solved=0.6),
    )
    assert "| line | 0 | 3 | 6 | 10 | 20 | 30 | 40 | 50 | 60 |" in text
    assert "| atod, total_steps=60 | 0 |  |  | 10 | 20 | 30 | 40 | 50 | 60 |" in text
    assert "| atod, total_steps=6 | 0 | 30 | 60 |  |  |  |  |  |  |" in text
    assert "| atod, total_steps=6 | kl/verb | 27.50 |  |  | 27.50 |" in text


def test_long_curves_show_a_dozen_points(tmp_path):
    text = page(tmp_path, make_run(tmp_path / "a", steps=200, every=5))
    (head,) = [x for x in text.splitlines() if x.startswith("| line | 0 |")]
    assert head.count("|") == 14
    assert head.endswith("| 200 |")


def test_each_temperature_has_a_table_of_what_there_is(tmp_path):
    text = page(
        tmp_path,
        make_run(tmp_path / "a", temperatures=(1.0, 0.4)),
        make_run(tmp_path / "b", algorithm="opd", temperatures=(1.0,)),
        make_run(tmp_path / "c", algorithm="grpo", temperatures=(0.7,), roles=("start", "final")),
    )
    tables = {t.split(":")[0]: t for t in text.split("Temperature ")[1:]}
    assert list(tables) == ["1", "0.7", "0.4"]
    assert rows(tables["0.4"], "atod")[0][2:4] == ["70.0 [54.6, 81.9]", "70.0"]
    assert not rows(tables["0.4"].split("###")[0], "opd")
    (grpo,) = [x for x in tables["0.7"].splitlines() if x.startswith("| grpo")]
    assert grpo.endswith("| 70.0 [54.6, 81.9] | 70.0 |  |  |")


def test_unfinished_runs_are_shown_as_far_as_they_are(tmp_path):
    begun = tmp_path / "begun"
    text = page(
        tmp_path,
        make_run(tmp_path / "a", seed=0),
        make_run(tmp_path / "b", seed=1, done=15, roles=("start", "teacher")),
        make_run(begun, algorithm="opd", done=0, roles=()),
    )
    assert "| atod | 1 | 15 of 30, unfinished | 23.3 [11.7, 46.7] at step 10 |" in text
    assert "70.0 / unfinished" in text
    assert "| opd | 0 | 0 of 30, unfinished | 0.0 [0.0, 0.0] at step 0 |" in text
    (begun / "metrics.jsonl").unlink()
    assert "| opd | 0 | 0 of 30, unfinished |  |" in page(tmp_path, str(begun))
    assert "After training" not in page(tmp_path, str(begun))


def test_equal_seeds_are_warned_of(tmp_path, capsys):
    folders = [make_run(tmp_path / name, seed=3) for name in "ab"]
    assert "**Warning:** atod: seed 3 is there 2 times" in page(tmp_path, *folders)
    main([f"--out={tmp_path / 'out'}", *folders])
    printed = capsys.readouterr()
    assert "warning: atod: seed 3 is there 2 times" in printed.err
    assert printed.out.strip() == str(tmp_path / "out" / "comparison.md")
    with pytest.raises(ValueError, match="a workdir is named twice"):
        page(tmp_path, folders[0], folders[0])


def shows(path, colour: str) -> bool:
    """Whether some pixels have exactly this colour."""
    image = np.rint(imread(path)[..., :3] * 255).astype(int)
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool(np.mean((image == wanted).all(-1)) > 2e-4)


def test_every_algorithm_has_a_colour_and_the_teacher_a_line(tmp_path):
    names = ("sod", "opd_clip", "sdar", "mine")
    solved = zip(names, (0.2, 0.4, 0.6, 0.8), strict=True)
    page(tmp_path, *(make_run(tmp_path / n, algorithm=n, solved=s) for n, s in solved))
    picture = tmp_path / "out" / "comparison.png"
    colours = COLOURS[:-1]  # the last is black, as the text is
    assert [shows(picture, colour) for colour in colours] == [True] * 4 + [False] * 3
    assert shows(picture, "#666666")  # the teacher's
    page(tmp_path, make_run(tmp_path / "alone", algorithm="grpo", roles=("start", "final")))
    assert not shows(picture, "#666666")


def test_without_a_curve_there_is_no_picture(tmp_path):
    """With eval.every=0 runs are evaluated before and after only."""
    text = page(tmp_path, make_run(tmp_path / "run", every=0))
    assert not list((tmp_path / "out").glob("*.png"))
    assert "| atod | 5.0 [" in text
    assert "Success along the way" not in text


def test_bad_folders_are_one_line(tmp_path, capsys):
    good = make_run(tmp_path / "good")
    damaged = tmp_path / "damaged"
    make_run(damaged)
    (damaged / "evaluations" / "final-T1.json").write_text("null")
    torn = make_run(tmp_path / "torn")
    (Path(torn) / "metrics.jsonl").write_text('{"step": 1e999}\n')
    other = tmp_path / "other"
    make_run(other)
    (other / "evaluations" / "start-T1.json").write_text(
        json.dumps(result(0.1, 1.0, 40, "x").to_json())
    )
    for arguments, message in (
        ([str(tmp_path)], f"error: {tmp_path} holds no run; name the --workdir of one of train"),
        ([str(damaged)], "final-T1.json holds no JSON object but None; delete it, and the run"),
        ([torn], "metrics.jsonl, line 1 is not a metrics record; delete the line"),
        ([str(other)], "holds evaluations on different tasks"),
        ([f"x={good}", f"x={make_run(tmp_path / 'b', lr=1.0)}"], "name 'x' is given to runs with"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([f"--out={tmp_path / 'out'}", *arguments])
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_help_says_what_is_compared_and_how(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Runs that differ in their seed only are one line" in text
    assert "NAME is what its line is called" in text
    assert "--out DIR" in text
