"""The health check: green where things work, red where they do not, and always to the end."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from runs import typed

from atod_jax import config, doctor
from atod_jax.envs.base import Environment, Expert, Observation, StepResult
from atod_jax.options import plugins
from atod_jax.records import Task
from atod_jax.results.progress import Progress
from atod_jax.run import cli
from configs import household

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def cfg():
    c = household.get_config("smoke")
    c.sampling.prompt_buckets = (160,)
    c.packing.minibatch_rows, c.packing.micro_rows = 16, 8
    c.rollout.group = 8
    c.eval.slots = 8
    return typed(c)


def verdicts(text):
    """Name of a check -> its verdict, as printed."""
    lines = [line.split(maxsplit=1) for line in text.splitlines()]
    return {rest.partition(":")[0]: verdict for verdict, rest in lines}


@pytest.fixture
def alfworld_alone(monkeypatch):
    """The environment that needs no data."""
    monkeypatch.setattr(doctor, "_environments", lambda cfg: ["alfworld"])


def test_every_environment_is_looked_at(cfg):
    names = [part.name for part in doctor.checks(cfg)]
    assert names == [
        "versions", "devices", "environment alfworld", "environment searchqa",
        "environment webshop", "generation", "training",
    ]  # fmt: skip


@pytest.mark.usefixtures("alfworld_alone")
def test_everything_works_here(cfg, capsys):
    doctor.start(cfg, cli.Flags())
    shown = capsys.readouterr()
    assert verdicts(shown.out) == {
        "versions": "ok", "devices": "ok", "environment alfworld": "ok", "generation": "ok",
        "training": "ok",
    }  # fmt: skip
    assert "household/student says" in shown.out
    assert "atod step with loss" in shown.out
    assert shown.err == ""


@pytest.mark.usefixtures("alfworld_alone")
def test_a_broken_part_turns_its_line_red_and_the_others_go_on(cfg, capsys, monkeypatch):
    def nothing_there(*_, **__):
        raise FileNotFoundError("no models;\n  fetch them")

    monkeypatch.setattr("atod_jax.run.models.load_student", nothing_there)
    monkeypatch.setattr("atod_jax.train.load_student", nothing_there)
    monkeypatch.setattr("atod_jax.results.provenance.package_versions", nothing_there)
    with pytest.raises(SystemExit) as stop:
        doctor.start(cfg, cli.Flags())
    assert stop.value.code == 1
    shown = capsys.readouterr().out
    broken = {name for name, verdict in verdicts(shown).items() if verdict == "broken"}
    assert broken == {"versions", "generation", "training"}
    assert "generation: FileNotFoundError: no models; fetch them" in shown


def test_even_an_odd_exception_is_one_line(capsys):
    def fail():
        raise KeyError("x")

    parts = [doctor.Check("one", fail), doctor.Check("two", lambda: "[fine]")]
    assert not doctor.examine(parts)
    assert doctor.examine(parts[1:])
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith("broken one: KeyError: 'x' (")
    assert second == third
    assert second.startswith("ok     two: [fine] (")


@dataclasses.dataclass(frozen=True)
class Settings:
    seed: int = 0


class Counter:
    """The smallest environment: it counts, and knows whether it was closed."""

    closed = False

    def reset(self, task):
        return Observation(f"count to {task.payload}", ("one",))

    def step(self, command):
        if command != "one":
            raise ValueError(f"cannot {command}")
        return StepResult(Observation("1"), 0.0, done=False, won=False)

    def close(self):
        self.closed = True


def plugin(env, command):
    return Environment(
        Config=Settings,
        splits=("only",),
        templates={},
        tasks=lambda settings, split: [Task("1", split, 3)],
        make=lambda settings, max_turns: env,
        expert=Expert(act=lambda episode: command) if command else None,
        data="write it yourself",
    )


def test_any_environment_is_checked_through_its_contract(cfg, capsys, monkeypatch):
    good, bad = Counter(), Counter()
    found = {"good": plugin(good, "one"), "bad": plugin(bad, "fly"), "alone": plugin(Counter(), "")}
    monkeypatch.setattr(doctor, "_environments", lambda cfg: ["alone", "bad", "good", "gone"])
    monkeypatch.setattr(plugins, "load", lambda kind, name: found[name])
    parts = [c for c in doctor.checks(cfg) if c.name.startswith("environment")]
    assert not doctor.examine(parts)
    assert verdicts(shown := capsys.readouterr().out) == {
        "environment alone": "ok", "environment bad": "broken", "environment good": "ok",
        "environment gone": "broken",
    }  # fmt: skip
    assert "environment good: 1 tasks in only; 'one' is answered by '1'" in shown
    assert "official data: write it yourself" in shown
    assert "environment bad: ValueError: cannot fly" in shown
    assert good.closed
    assert bad.closed


def test_the_smoke_config_is_used_unless_another_is_named():
    smoke = config.resolve(config.load("household:smoke"))
    assert cli.parse(doctor.PROGRAM, [])[1] == smoke
    other = cli.parse(doctor.PROGRAM, ["--config=quickstart", "--config.seed=1"])[1]
    assert (other.seed, other.total_steps) == (1, 60)


def test_the_command_line_refuses_a_bad_config():
    command = [sys.executable, "-m", "atod_jax.doctor", "--config.env.alfworld.engine=unity"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 2
    assert "env.alfworld.engine='unity'" in done.stderr


def test_progress_goes_to_where_errors_go_now(capsys):
    Progress(total=2).advance({})
    assert "step 1/2" in capsys.readouterr().err
