"""The cache of compiled programs."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import pytest

from atod_jax.run.cache import use_cache

PROGRAM = """
import sys, jax
from atod_jax.run.cache import use_cache
use_cache(sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
for n in range(3):
    assert jax.jit(lambda x: (x + n) * 2)(1.0) == 2 * (n + 1)
"""


@pytest.fixture
def set_options(monkeypatch):
    """What is set of JAX, in place of setting it."""
    found = {}
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(jax.config, "update", found.__setitem__)
    return found


def test_programs_are_kept_in_a_folder_per_processor(set_options, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    use_cache("~/kept")
    (folder,) = (tmp_path / "kept").iterdir()
    assert set_options["jax_compilation_cache_dir"] == str(folder)


def test_the_environment_names_another_folder_and_nothing_keeps_none(
    set_options, tmp_path, monkeypatch
):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "mine"))
    use_cache(None)
    assert not set_options
    use_cache("")
    assert set_options == {"jax_enable_compilation_cache": False}
    assert not list(tmp_path.iterdir())
    use_cache(str(tmp_path / "kept"))
    assert set_options["jax_compilation_cache_dir"].startswith(str(tmp_path / "kept"))


@pytest.mark.parametrize("folder", ["{file}/below", "~nobody-of-this-name/x", "/proc/none"])
def test_a_run_goes_on_where_there_is_no_place(folder, set_options, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    use_cache(folder.format(file=tmp_path / "file"))
    assert not set_options
    said = capsys.readouterr().err
    assert said.startswith("no cache of compiled programs: ")
    assert said.count("\n") == 1


def _start(folder: Path) -> str:
    """What a process says that compiles three programs with this cache."""
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMP", "JAX_PERS"))
    }
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    return run.stderr


def test_damaged_programs_are_kept_anew(tmp_path):
    assert _start(tmp_path) == ""
    (place,) = tmp_path.iterdir()
    entries = sorted(place.glob("*-cache"))
    assert len(entries) >= 3
    for entry, content in zip(
        entries, (b"", b"garbled", entries[2].read_bytes()[:-9]), strict=False
    ):
        entry.write_bytes(content)
    assert _start(tmp_path) == f"{place}: 3 damaged programs removed; they are compiled again\n"
    assert _start(tmp_path) == ""
    assert sorted(place.glob("*-cache")) == entries


def test_a_place_that_cannot_be_written_is_told_once(tmp_path):
    _start(tmp_path)
    (place,) = tmp_path.iterdir()
    for entry in place.iterdir():
        entry.unlink()
    place.rmdir()
    place.symlink_to("/proc/self")  # a folder in which nobody can make a file
    said = _start(tmp_path)
    assert said.count("\n") == 1
    assert said.startswith("no cache of compiled programs: ")


def test_other_warnings_go_their_way_however_often_a_cache_is_named(
    set_options, tmp_path, monkeypatch
):
    shown = []
    monkeypatch.setattr(warnings, "showwarning", lambda *warning: shown.append(warning))
    beneath = warnings.showwarning
    for name in ("a", "b"):
        use_cache(str(tmp_path / name))
    assert warnings.showwarning.args == (next((tmp_path / "b").iterdir()), beneath)
    warnings.showwarning("something", UserWarning, "file.py", 1)
    assert shown == [("something", UserWarning, "file.py", 1)]
