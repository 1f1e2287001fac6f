"""Files that a reader never finds half written."""

import os

import pytest

from atod_jax.results.files import write_text


def test_the_text_is_there_and_nothing_else(tmp_path):
    path = tmp_path / "new" / "folder" / "a.json"
    write_text(path, "ü\n")
    write_text(path, "second")
    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]


def test_a_kill_leaves_the_old_text(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def killed(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert path.read_text() == "old"
