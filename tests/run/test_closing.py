"""What a run says of its results, and which commands it offers."""

import importlib.util
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from runs import typed

from atod_jax import config, evaluate, export, play, replay
from atod_jax.__main__ import PROGRAMS
from atod_jax.results.intervals import EvalResult
from atod_jax.run import cli, closing

STARTED = {program.PROGRAM.name: program.PROGRAM for program in (evaluate, export, play, replay)}


def result(*success, temperature=1.0):
    """One pass over the tasks a, b, c, ..."""
    table = np.asarray([success], bool)
    names = tuple("abcdefghij"[: len(success)])
    return EvalResult(
        temperature=temperature, task_ids=names, kinds=("k",) * len(names), success=table,
        turns=np.ones(table.shape, np.int32), score=table.astype(np.float32), valid_rate=1.0,
    )  # fmt: skip


def test_an_evaluation_is_one_line_beside_the_teacher_on_the_same_tasks():
    some, teacher = result(1, 0, 0, 1), result(1, 1, 0, 1, 0, 0, 0, 0)
    line = "step 20: 50 % [15, 85] at T=1, 4 tasks"
    assert closing.outcome("step 20", some) == line
    assert closing.outcome("step 20", some, teacher) == f"{line}, teacher 75"
    assert closing.outcome("step 20", teacher, some).endswith("at T=1, 8 tasks")  # four unknown


def test_the_table_pairs_the_same_tasks():
    """after - before: 0, 1, 1, 0 over four tasks: mean 0.5, half width 1.96 * 0.577 / 2."""
    references = {
        "start": {1.0: result(1, 0, 0, 0)},
        "teacher": {1.0: result(1, 1, 1, 0)},
        "final": {1.0: result(1, 1, 1, 0)},
    }
    rows = closing.table(references).splitlines()
    assert [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows[:-1]] == [
        ["% of 4 tasks solved", "T=1"],
        ["-" * 21, "-" * 22],
        ["before", "25.0 [4.6, 69.9]"],
        ["after", "75.0 [30.1, 95.4]"],
        ["teacher", "75.0 [30.1, 95.4]"],
        ["after - before", "+50.0 [-6.6, +106.6]"],
        ["after - teacher", "+0.0 [+0.0, +0.0]"],
    ]
    del references["teacher"]
    assert "teacher" not in closing.table(references)
    lone = {role: {1.0: result(role == "final")} for role in ("start", "final")}
    assert "| +100.0" in closing.table(lone)


@pytest.mark.parametrize("changes", [{}, {"record": True}, {"export": "somewhere"}], ids=str)
@pytest.mark.parametrize("others", [0, 2])
def test_three_commands_come_next_and_can_be_typed(changes, others, tmp_path, monkeypatch):
    # as `python -m` starts programs, whoever started these tests
    spec = importlib.util.find_spec("atod_jax.train")
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec, raising=False)
    out = tmp_path / "a run"
    for folder in (out, *(tmp_path / str(n) for n in range(others))):
        folder.mkdir()
        (folder / "report.md").touch()
        (folder / "run_config.json").touch()
    cfg = typed(config.load("household:smoke"), **changes)
    lines = [line for line, _ in closing.commands(cfg, out)]
    third = ["compare"] if others else [] if "export" in changes else ["export"]
    second = "replay" if "record" in changes else "play"
    programs = ["evaluate", second, *third]
    for line, program in zip(lines, programs, strict=True):
        words = shlex.split(line)
        assert words[words.index("atod_jax") + 1] == program in PROGRAMS
        assert any(word.endswith(str(out)) for word in words)
        assert Path(words[0]).exists() or words[0] == "python"
        if program in STARTED:
            flags, _ = cli.split(words[words.index(program) + 1 :])
            assert cli._parser(STARTED[program]).parse_known_args(flags)[1] == []
