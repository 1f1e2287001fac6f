"""The cache of compiled programs, and who is told what is compiled."""

import time

import jax
import jax.numpy as jnp
import pytest

from atod_jax.run import compiling


@pytest.fixture
def set_options(monkeypatch):
    """What is set of JAX, in place of setting it."""
    found = {}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(jax.config, "update", found.__setitem__)
    return found


def test_programs_are_kept_in_a_folder_per_processor(set_options, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    compiling.use_cache("~/kept")
    (folder,) = (tmp_path / "kept").iterdir()
    assert set_options["jax_compilation_cache_dir"] == str(folder)


def test_the_environment_names_another_folder_and_nothing_keeps_none(
    set_options, tmp_path, monkeypatch
):
    compiling.use_cache("")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "mine"))
    compiling.use_cache(str(tmp_path / "kept"))
    assert not set_options
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", ["{file}/below", "~nobody-of-this-name/x", "/proc/none"])
def test_a_run_goes_on_where_there_is_no_place(folder, set_options, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    compiling.use_cache(folder.format(file=tmp_path / "file"))
    assert not set_options
    said = capsys.readouterr().err
    assert said.startswith("no cache of compiled programs: ")
    assert said.count("\n") == 1


def test_slow_programs_are_named_and_all_are_timed(monkeypatch):
    monkeypatch.setattr(compiling, "QUIET_SECONDS", 0.0)
    lines = []

    def gradient(x):
        for n in range(50):  # of some size
            x = jnp.sin(x) @ x + n
        return x

    def other(x):
        return 2 * x

    with compiling.Compiling(3, lines.append) as watch:
        x = jnp.ones((3, 3))
        jax.jit(gradient).lower(x)  # lowered before it is called, as programs side by side are
        compiled = time.perf_counter()
        jax.block_until_ready(jax.jit(gradient)(x))
        compiled = time.perf_counter() - compiled
        jax.jit(other)(x)
        assert 0 < watch.take_seconds() < 2 * compiled + 1
        assert watch.take_seconds() == 0
    assert lines[0] == "compiling 1 of 3: gradient"
    assert not any("other" in line for line in lines)
