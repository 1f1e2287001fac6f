"""Lines above what is drawn, and the log beside the run."""

import contextlib
import io
import re
import sys
import threading

import pytest

from atod_jax.results import terminal
from atod_jax.results.terminal import Terminal


class Screen(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@contextlib.contextmanager
def screen():
    """A terminal on both streams."""
    out = Screen()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        yield out


@pytest.fixture(autouse=True)
def able(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")


def words(path):
    """The lines of a log without their times."""
    lines = path.read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in lines)
    return [line[20:] for line in lines]


def test_lines_of_all_threads_stand_above_the_drawing_and_in_the_log(tmp_path):
    log = tmp_path / "run.log"

    def talk(name):
        for _ in range(50):
            print(name * 100, file=sys.stderr, flush=True)

    with screen() as out, Terminal(log) as shown:
        assert shown.draw(lambda: "the panel")
        threads = [threading.Thread(target=talk, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        shown.leave()
        print("the end")
    seen = re.sub(r"\x1b\[[0-9?]*[A-Za-z]", "", out.getvalue().replace("\r", "\n")).splitlines()
    assert sorted(line for line in seen if line[:1] in "ab") == ["a" * 100] * 50 + ["b" * 100] * 50
    assert seen[-2:] == ["the panel", "the end"]
    assert out.getvalue().rpartition("\x1b[?25")[2][0] == "h"  # the cursor is there
    assert sorted(words(log)) == sorted(["a" * 100] * 50 + ["b" * 100] * 50 + ["the end"])


@pytest.mark.parametrize("kind", ["dumb", "", "file", "ascii"])
def test_nothing_is_drawn_where_that_cannot_be_done(kind, monkeypatch):
    if kind == "file":
        monkeypatch.setattr(Screen, "isatty", lambda self: False)
        monkeypatch.setenv("FORCE_COLOR", "1")
    elif kind == "ascii":
        monkeypatch.setattr(Screen, "encoding", "ascii")
    else:
        monkeypatch.setenv("TERM", kind or "unknown")
    with screen() as out, Terminal() as shown:
        assert not shown.draw(lambda: "the panel")
        print("one ", end="")
        print("line")
    assert out.getvalue() == "one line\n"


def test_no_color_is_respected(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    with screen() as out, Terminal() as shown:
        shown.draw(lambda: "[red]the panel[/]")
    assert "the panel" in out.getvalue()
    assert "\x1b[31m" not in out.getvalue()


def test_the_log_goes_on_says_how_a_run_ended_and_is_bounded(tmp_path, monkeypatch):
    log = tmp_path / "run.log"
    for _ in range(2):
        with contextlib.suppress(ValueError), screen(), Terminal(log) as shown:
            print("\rhalf\rone\n\ntwo")
            shown.note("for the log")
            raise ValueError("odd")
    once = ["one", "", "two", "for the log"]
    said = words(log)
    assert [line for line in said if "odd" not in line] == once * 2
    assert said[4].startswith("ended by ValueError: odd (File ")
    assert "test_terminal.py" in said[4]
    monkeypatch.setattr(terminal, "LARGEST", 1000)
    with screen(), Terminal(log):
        for _ in range(200):
            print("x" * 50)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 2000


@pytest.mark.parametrize("place", ["full", "nowhere"])
def test_a_log_that_cannot_be_written_costs_nothing_else(place, tmp_path):
    log = tmp_path / "nowhere" / "run.log"
    if place == "full":
        log = tmp_path / "run.log"
        log.symlink_to("/dev/full")
    with screen() as out, Terminal(log):
        print("goes on")
    assert out.getvalue() == "goes on\n"
