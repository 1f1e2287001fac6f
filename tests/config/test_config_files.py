"""Config files: found by name and by path, from anywhere, and beside other people's packages."""

import sys

import pytest

from atod_jax import config
from atod_jax.config import files

MINE = """
from atod_jax import config
from . import beside

def get_config(arg=None):
    c = config.load("household:smoke")
    c.seed = beside.SEED
    c.total_steps = config.parse_arg(arg, steps=5).steps
    return c
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of one's own, with a package `configs` and a config in it."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").write_text("")
    (tmp_path / "configs" / "mine.py").write_text(MINE)
    (tmp_path / "configs" / "beside.py").write_text("SEED = 7\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["quickstart", "quickstart.py", "configs/quickstart.py"])
def test_shipped_configs_are_found_beside_a_configs_package_of_one_s_own(name, folder):
    c = config.load(name)
    assert c.student.path == "household/student"
    assert c.total_steps == 60


def test_a_variant_stands_behind_a_colon(folder):
    assert config.load("household:algo=grpo,steps=9").algorithm.name == "grpo"
    assert config.load("configs/household.py:smoke").total_steps == 3


def test_a_file_of_one_s_own_builds_on_shipped_ones_and_on_its_neighbours(folder):
    assert config.load("configs/mine.py").seed == 7
    assert config.load(str(folder / "configs" / "mine.py") + ":steps=8").total_steps == 8
    assert "configs.mine" not in sys.modules


def test_a_path_goes_before_a_shipped_name(folder):
    (folder / "configs" / "quickstart.py").write_text(MINE)
    assert config.load("configs/quickstart.py").seed == 7
    assert config.load("quickstart").seed == 0


def test_the_home_folder_can_be_written_as_a_tilde(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert config.load("~/configs/mine.py").total_steps == 5


def test_an_edited_file_is_read_anew(folder):
    path = folder / "configs" / "mine.py"
    assert config.load(str(path)).total_steps == 5
    path.write_text(MINE.replace("steps=5", "steps=60"))
    assert config.load(str(path)).total_steps == 60


def test_all_shipped_configs_are_listed_and_no_helper():
    assert {"quickstart", "household", "alfworld", "webshop", "searchqa"} <= set(config.shipped())
    assert not {"presets", "sweeps"} & set(config.shipped())
    for name in config.shipped():
        assert files.find(name).parent == files.shipped_folder()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("quickstrat", FileNotFoundError, r"no such file \(did you mean 'quickstart'\?\); shipped"),
        ("configs/none.py", FileNotFoundError, r"--config=configs/none\.py: no such file"),
        ("nowhere/quickstart.py", FileNotFoundError, r"did you mean 'quickstart'"),
        ("presets", FileNotFoundError, r"--config=presets: no such file"),
        ("configs/beside.py", ValueError, r"beside\.py: the file defines no get_config\(\)"),
        ("quickstart:big", ValueError, r"quickstart:big: the file has no variants; leave out"),
        ("household:algoo=opd", ValueError, r"variant 'algoo' is unknown \(did you mean 'algo'"),
        ("household:steps=x", ValueError, r"config variant steps='x': must be a whole number"),
        ("forgot.py", ValueError, r"forgot\.py: get_config\(\) returns None; let it"),
        ("notes.txt", FileNotFoundError, r"notes\.txt: not a Python file"),
    ],
)
def test_mistakes_name_the_file_and_the_fix(name, error, message, folder):
    (folder / "forgot.py").write_text("def get_config():\n    pass\n")
    (folder / "notes.txt").write_text("")
    with pytest.raises(error, match=message):
        config.load(name)


def test_a_file_that_raises_leaves_nothing_behind(folder):
    (folder / "half.py").write_text("X = 1\n1 / 0\n")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"half\.py, line 2: ZeroDivisionError: division"):
            config.load("half.py")
    assert not [name for name in sys.modules if name.endswith(".half")]
    (folder / "end.py").write_text("raise SystemExit\n")
    with pytest.raises(ValueError, match=r"end\.py, line 1: SystemExit"):
        config.load("end.py")


def test_arguments_of_a_variant_are_typed():
    read = config.parse_arg("a=3,b,c=1e-4,d=x", a=1, b=False, c=0.5, d="", e=2)
    assert read.to_dict() == {"a": 3, "b": True, "c": 1e-4, "d": "x", "e": 2}
    assert config.parse_arg(None, a=1).to_dict() == {"a": 1}
    assert config.parse_arg("b=false", b=True).b is False
