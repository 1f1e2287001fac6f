"""Programs take the configuration of the run they are given; what differs from it is said."""

import pytest
from runs import typed

from atod_jax import evaluate, export, play, replay
from atod_jax.run import cli, workdir
from configs import household


@pytest.fixture
def run(tmp_path):
    """The folder of a run with options of its own, and these."""
    cfg = typed(household.get_config("smoke"), **{"env.history": 1, "optim.lr": 1e-3})
    out = tmp_path / "run"
    workdir.open_workdir(out, cfg)
    (out / "checkpoints").mkdir()
    workdir.pin(out, cfg)
    return out, cfg


@pytest.mark.parametrize(
    "program", [evaluate.PROGRAM, export.PROGRAM, replay.PROGRAM, play.PROGRAM]
)
def test_a_checkpoint_is_enough(program, run, capsys):
    out, cfg = run
    for checkpoint in (out, out / "checkpoints"):
        assert cli.parse(program, [f"--checkpoint={checkpoint}"])[1] == cfg
    assert capsys.readouterr().err == ""


def test_overrides_go_on_top_and_are_printed(run, capsys):
    out, cfg = run
    arguments = [f"--checkpoint={out}", "--config.env.history=0", "--config.eval.passes=4"]
    got = cli.parse(evaluate.PROGRAM, arguments)[1]
    assert (got.env.history, got.eval.passes, got.optim) == (0, 4, cfg.optim)
    assert capsys.readouterr().err.splitlines() == [
        "env.history=0 (the run's own: 1)", "eval.passes=4 (the run's own: 1)",
    ]  # fmt: skip


def test_another_config_says_where_it_differs(run, capsys):
    arguments = ["--config=household:smoke", f"--checkpoint={run[0]}"]
    assert cli.parse(evaluate.PROGRAM, arguments)[1].env.history == 2
    assert "env.history=2 (the run's own: 1)" in capsys.readouterr().err


def test_a_run_of_another_version_needs_a_config(run):
    out, _ = run
    (out / "run_config.json").write_text('{"seed": 0, "student": {}, "env": {"games": ""}}')
    with pytest.raises(ValueError, match="does not hold options of this version"):
        cli.parse(evaluate.PROGRAM, [f"--checkpoint={out}"])
    named = cli.parse(evaluate.PROGRAM, ["--config=household", f"--checkpoint={out}"])[1]
    assert named.env.name == "alfworld"


@pytest.mark.parametrize("config", [(), ("--config=household",)])
def test_a_mistyped_checkpoint_is_named_as_that(config, run):
    with pytest.raises(
        FileNotFoundError, match=r"--checkpoint=.*/rum: no such folder; did you mean"
    ):
        cli.parse(evaluate.PROGRAM, [*config, f"--checkpoint={run[0].with_name('rum')}"])


def test_help_shows_the_options_of_a_plug_in_that_is_named(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.parse(evaluate.PROGRAM, ["--config=household", "--config.optim.lr=0.25", "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for part in (
        "--checkpoint",
        "flags:",
        "optim.lr = 0.25",
        "env.alfworld.games",
        "algorithm.atod.tdur",
    ):
        assert part in shown
