"""One run at a time in a folder, and nothing left of a dead one."""

import errno
import fcntl
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from atod_jax.run import workdir

REPO = Path(__file__).resolve().parents[2]
HOLD = """
import os, sys, time
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from atod_jax.results.lock import locked
with locked(Path(sys.argv[1])):
    if os.fork() == 0:  # a child that lives longer, as workers of environments may
        os.close(1)
        time.sleep(60)
        os._exit(0)
    print("holds it", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the folder, until its standard input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), str(REPO)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "holds it\n"
        yield process
        subprocess.run(["pkill", "-9", "-g", str(process.pid)], check=False)


def claim(folder):
    with workdir.claimed(str(folder)) as out:
        return (out / "run.lock").read_text()


def test_a_second_run_is_refused_and_told_who_is_there(tmp_path, holder):
    who = f"process {holder.pid} on {socket.gethostname()} is training in it"
    for _ in range(2):  # asking does not open the door
        with pytest.raises(ValueError, match=f"--workdir={tmp_path}: {who}; wait for it or stop"):
            claim(tmp_path)


@pytest.mark.parametrize("end", ["kill", "leave"])
def test_any_end_of_a_run_frees_its_folder(tmp_path, holder, end):
    holder.kill() if end == "kill" else holder.stdin.close()
    holder.wait()
    assert claim(tmp_path).startswith("process ")
    assert claim(tmp_path).startswith("process ")
    assert (tmp_path / "run.lock").read_text() == ""


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    def refuse(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    claim(tmp_path)
    assert "without locks (No locks available); start no second run" in capsys.readouterr().err
