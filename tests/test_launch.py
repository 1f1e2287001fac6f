"""Launch scripts and requirement files: sound, short, and in step with each other."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
SCRIPTS = [*sorted((REPO / "launch").glob("*.sh")), REPO / ".ci" / "run"]
PIN = re.compile(r"^([A-Za-z0-9_.-]+)==([0-9][0-9a-z.]*)$")


def read_pins(name: str) -> dict[str, str]:
    """Package -> version; fails on any line that is no exact pin."""
    lines = (REPO / name).read_text().splitlines()
    pins = [PIN.match(line) for line in lines if line and not line.startswith("#")]
    assert all(pins), f"{name} has a line that is no exact pin"
    return {normal(pin[1]): pin[2] for pin in pins}


def normal(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version))


def bounds_of(section: list[str]) -> dict[str, tuple[str, str]]:
    parsed = [re.match(r"([A-Za-z0-9_.-]+)(?:\[\w+\])?(>=|==)([0-9.]+)$", line) for line in section]
    assert all(parsed)
    return {normal(m[1]): (m[2], m[3]) for m in parsed}


def assert_pins_meet(pins: dict[str, str], bounds: dict[str, tuple[str, str]]) -> None:
    for name, (relation, bound) in bounds.items():
        assert name in pins, f"{name} is required but not pinned"
        if relation == "==":
            assert pins[name] == bound
        else:
            assert numbers(pins[name]) >= numbers(bound), f"{name}=={pins[name]} is below {bound}"


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((REPO / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_scripts_are_sound_short_and_executable(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    lines = script.read_text().splitlines()
    assert len(lines) < 60
    assert lines[0] == "#!/usr/bin/env bash"
    assert lines[1].startswith("# ")
    assert any(re.match(r"set -[eu]*uo pipefail", line) for line in lines)
    assert os.access(script, os.X_OK)


def test_core_pins_are_the_declared_dependencies(project):
    pins = read_pins("requirements.txt")
    bounds = bounds_of(project["dependencies"])
    assert_pins_meet(pins, bounds)
    assert set(pins) == set(bounds)
    assert not set(pins) & {"torch", "tensorflow", "jpype1"}


def test_test_pins_meet_the_extras(project):
    extras = project["optional-dependencies"]
    pins = read_pins("tests/requirements.txt")
    assert_pins_meet(pins, bounds_of(extras["test"]))
    ruff = next(line for line in extras["dev"] if line.startswith("ruff"))
    assert ruff == f"ruff=={pins['ruff']}"
    assert f"rev: v{pins['ruff']}" in (REPO / ".pre-commit-config.yaml").read_text()


@pytest.mark.parametrize("name", ["tpu", "cuda"])
def test_accelerators_get_the_same_jax(name, project):
    lines = (REPO / "launch" / f"{name}.txt").read_text().splitlines()
    [extra] = project["optional-dependencies"][name]
    plugin = extra.partition(">=")[0]  # jax[...]
    version = read_pins("requirements.txt")["jax"]
    assert [line for line in lines if not line.startswith("#")] == [f"{plugin}=={version}"]


def test_an_old_python_is_refused_with_the_fix(tmp_path):
    """A copy of the script, far from any .venv, with an interpreter that claims to be too old."""
    (tmp_path / "launch").mkdir()
    script = tmp_path / "launch" / "venv.sh"
    script.write_text((REPO / "launch" / "venv.sh").read_text())
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    environment = os.environ | {"PYTHON": str(old)}
    done = subprocess.run(
        ["bash", str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert f"error: no Python >= 3.11 among: {old}" in done.stderr
    assert "PYTHON=/path/to/python3.11" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_an_unchanged_requirement_file_is_not_installed_again(tmp_path):
    """With a stand-in for pip that notes each call."""
    (tmp_path / "launch").mkdir()
    script = tmp_path / "launch" / "venv.sh"
    script.write_text((REPO / "launch" / "venv.sh").read_text())
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} "$@"\n'
        '[ "$3" = install ] && echo "$@" >> calls\nexit 0\n'
    )
    python.chmod(0o755)
    requirements = tmp_path / "requirements.txt"

    def calls_after_run() -> int:
        subprocess.run(["bash", str(script), "requirements.txt"], check=True, capture_output=True)
        return len((tmp_path / "calls").read_text().splitlines())

    requirements.write_text("a==1\n")
    assert [calls_after_run(), calls_after_run()] == [1, 1]
    requirements.write_text("a==2\n")
    assert calls_after_run() == 2
