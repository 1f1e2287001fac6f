"""Folders that may be written over are those whose whole content we wrote, and nothing else is."""

import os
import subprocess

import pytest

from atod_jax.models.written import require_place, require_unchanged
from atod_jax.sums import seal

FILES = {"config.json": "{}", "model.safetensors": "weights", "chat_template.jinja": "{{ x }}"}


@pytest.fixture
def ours(tmp_path):
    folder = tmp_path / "ours"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    seal(folder)
    return folder


def test_the_list_is_that_of_sha256sum(ours):
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    done = subprocess.run(command, cwd=ours, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{name}: OK" for name in sorted(FILES)]


def flip(file):
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_weights_with_a_changed_bit_are_refused_by_file(ours):
    require_unchanged(ours, "student.path")
    flip(ours / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"^student.path: .*ours/model.safetensors is not the file"
    ):
        require_unchanged(ours, "student.path")
    (ours / "SHA256SUMS").unlink()
    require_unchanged(ours, "student.path")


def test_an_edited_template_is_told_of(ours, capsys):
    flip(ours / "chat_template.jinja")
    (ours / "config.json").unlink()
    require_unchanged(ours, "teacher.path")
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(" is not the file")[0] for line in told] == [
        f"warning: teacher.path: {ours / name}" for name in ("chat_template.jinja", "config.json")
    ]


def test_places_that_are_free(tmp_path, ours, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("ours")
    (tmp_path / "dangling").symlink_to("later")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    places = {
        "new": "new", "deep/er/new": "deep/er/new", "empty": "empty", "ours": "ours",
        "link": "ours", "dangling": "later", "~/new": "new", "ours/../new/.": "new",
    }  # fmt: skip
    for path, place in places.items():
        assert require_place(path, "export") == tmp_path / place


def test_places_where_something_would_be_lost(tmp_path, ours, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "config.json").write_text("{}")
    (tmp_path / "to_student").symlink_to("student")
    (tmp_path / "file").write_text("")
    refused = {
        "student": "holds config.json, which no export has written",
        "to_student": "holds config.json, which no export has written",
        ".": "holds file, which no export has written",
        "..": "which no export has written",
        "/": "which no export has written",
        "file": "is a file; name a folder",
        "file/below": "below cannot be written in",
    }
    (tmp_path / "round").symlink_to("round")
    refused |= {
        "round": "Symlink loop",
        "~nobody-of-this-name/a": "Could not determine home directory",
        "x" * 250: "cannot be written in",  # a name that leaves no room for a second folder
    }
    for path, message in refused.items():
        with pytest.raises(ValueError, match=rf"^export={path}:? .*{message}"):
            require_place(path, "export")
    for path in ("ours", str(ours), "ours/../ours"):  # ours, and yet needed
        with pytest.raises(ValueError, match=rf"^export={path} holds {ours}, which this run needs"):
            require_place(path, "export", kept=["household/student", ours])
    with pytest.raises(ValueError, match=rf"holds {ours}/a, which this run needs"):
        require_place("ours", "export", kept=["ours/a"])


def test_what_a_user_put_into_our_folder_is_not_ours(ours):
    (ours / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds notes.txt, which no export has written"):
        require_place(ours, "export")
    (ours / "notes.txt").unlink()
    (ours / "chat_template.jinja").write_text("{{ mine }}")
    with pytest.raises(ValueError, match=r"holds chat_template.jinja, which no export has written"):
        require_place(ours, "export")


def test_a_list_of_sums_that_somebody_made_does_not_make_a_folder_ours(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    command = "sha256sum mine.txt > SHA256SUMS"
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    with pytest.raises(ValueError, match=r"holds SHA256SUMS, which no export has written"):
        require_place(tmp_path, "export")


def test_the_folder_one_is_in_and_one_without_permission(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ValueError, match=r"export=\. is the folder you are in; name one below it"):
        require_place(".", "export")
    with pytest.raises(ValueError, match="new cannot be written in /proc"):  # nor by root
        require_place("/proc/new", "export")
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path / "volume")
    with pytest.raises(ValueError, match=r"volume is a file system of its own"):
        require_place(tmp_path / "volume", "export")
    assert list(tmp_path.iterdir()) == [tmp_path / "here"]
