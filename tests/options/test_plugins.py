"""Plug-ins by name: shipped, from anywhere, and broken ones that harm nobody else."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import atod_jax
from atod_jax.options import plugins
from atod_jax.options.plugins import ALGORITHMS, ENVIRONMENTS

MINE = """
import dataclasses
from atod_jax.algorithms.base import Algorithm, hybrid

@dataclasses.dataclass(frozen=True)
class Config:
    scale: float = 2.0

ALGORITHM = Algorithm(Config, lambda cfg, step: hybrid(step))
"""


def test_shipped_plug_ins_are_found_by_file_name():
    assert {"atod", "opd", "grpo", "sft"} <= set(plugins.names(ALGORITHMS))
    assert set(plugins.names(ENVIRONMENTS)) == {"alfworld", "searchqa", "webshop"}


def test_a_module_of_one_s_own(tmp_path, monkeypatch):
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "mine.py").write_text(MINE)
    (tmp_path / "single.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("my_package.mine", "single"):
        assert plugins.load(ALGORITHMS, name).Config().scale == 2.0
    assert plugins.key("my_package.mine") == "mine"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("atodd", r"algorithm\.name='atodd': there is none \(did you mean 'atod'\?\); choose from"),
        ("no.such.module", r"algorithm\.name='no.such.module': there is none"),
        ("json", r"algorithm\.name='json': there is none"),
        ("half", r"algorithm\.name='half': half cannot be imported: ZeroDivisionError"),
        ("needy", r"needy cannot be imported: ModuleNotFoundError: No module named 'absent_thing'"),
    ],
)
def test_what_cannot_be_loaded_says_why(name, message, tmp_path, monkeypatch):
    (tmp_path / "half.py").write_text("1 / 0")
    (tmp_path / "needy.py").write_text("import absent_thing")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=message):
        plugins.load(ALGORITHMS, name)


def test_a_stray_or_broken_file_harms_nobody_else(tmp_path):
    """In a copy of the package, since the files stand beside the shipped ones."""
    package = Path(atod_jax.__file__).parent
    ignore = shutil.ignore_patterns("assets", "__pycache__")
    shutil.copytree(package, tmp_path / "atod_jax", ignore=ignore)
    beside = tmp_path / "atod_jax" / "algorithms"
    (beside / "my_utils.py").write_text("X = 1\n")
    (beside / "broken.py").write_text("def half(:\n")
    code = """
from atod_jax.options import plugins
kind = plugins.ALGORITHMS
assert "atod" in plugins.names(kind) and "my_utils" not in plugins.names(kind)
plugins.load(kind, "atod")
for name in ("broken", "my_utils"):
    try:
        plugins.load(kind, name)
    except ValueError as error:
        print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert run.stderr.count("atod_jax.algorithms.broken is left out: SyntaxError") == 1
    first, second = run.stdout.splitlines()
    assert "algorithm.name='broken'" in first
    assert "SyntaxError" in first
    assert "algorithm.name='my_utils': there is none" in second
