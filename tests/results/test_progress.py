"""The sign of life, and the time it says is left."""

import contextlib
import io
import math

import pytest

from atod_jax.results.progress import Pace, Progress
from atod_jax.results.terminal import Terminal


class Clock:
    def __init__(self):
        self.now = self.lost = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def make(clock, **options):
    return Progress(lost=lambda: clock.lost, clock=clock, **options)


def test_a_line_every_few_seconds_without_a_terminal(clock, capsys):
    """6 s per step, from step 10: a line at 6 s, then after 15 s or more, and the last."""
    progress = make(clock, total=20, title="atod on alfworld")
    progress.begin(10)
    for done in range(11, 21):
        clock.now += 6.0
        progress.advance({"rollout/success": done / 10, "b": 1.0})
    assert capsys.readouterr().err.splitlines() == [
        "step 11/20  atod on alfworld  rollout/success 1.1",
        "step 14/20, 0:36 left  atod on alfworld  rollout/success 1.4",
        "step 17/20, 0:18 left  atod on alfworld  rollout/success 1.7",
        "step 20/20, 0:00 left  atod on alfworld  rollout/success 2",
    ]


def test_an_evaluation_counts_its_episodes_where_it_is_long(clock, capsys):
    progress = make(clock)
    for seconds in (0.9, 7.0):
        with progress.evaluation("start at T=1", 8) as ended:
            for count in range(8):
                clock.now += seconds
                ended(count)
    said = capsys.readouterr().err.splitlines()
    assert said == [f"start at T=1: {n} of 8 episodes played" for n in (2, 5)]


def test_a_long_rollout_says_how_far_it_is_and_counts_as_the_step(clock, capsys):
    progress = make(clock, total=3)
    progress.begin(0)
    for step in range(2):
        with progress.playing(f"step {step + 1}", 4) as ended:
            for count in range(1, 5):
                clock.now += 10
                ended(count)
        progress.advance({})
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "played" in line] == [
        "step 1: 2 of 4 episodes played", "step 1: 4 of 4 episodes played",
        "step 2: 2 of 4 episodes played", "step 2: 4 of 4 episodes played",
    ]  # fmt: skip
    assert progress._left() == 40


def test_the_time_left_knows_evaluations_and_compiling(clock):
    """Steps of 2 s, every second one after an evaluation of 8 episodes in 4 s; compiling beside
    it. The estimate is right from the second step on, and one slow step does not move it."""
    progress = make(clock, total=10)
    progress.begin(0)
    with progress.evaluation("teacher", 8, again=False):
        clock.now += 500
    off = []
    for step in range(10):
        if step % 2 == 0:
            with progress.evaluation("curve", 8):
                clock.lost += 30 * (step == 0)
                clock.now += 4 + 30 * (step == 0)
        if step == 0:
            clock.lost += 40
            clock.now += 45
        clock.now += 12 if step == 6 else 2
        coming = 8 * len([s for s in range(step + 1, 10) if s % 2 == 0])
        progress.advance({}, coming)
        really = sum(2 + 4 * (s % 2 == 0) for s in range(step + 1, 10))
        off.append(progress._left() - really)
    assert math.isnan(off[0])
    assert off[1:] == [0.0] * 9


def test_steps_that_compile_stand_in_for_others_while_there_are_none():
    pace = Pace()
    for seconds, compiling in ((60, 50), (33, 30), (24, 20)):
        assert math.isnan(pace.left(10, 0)) == (seconds > 30)
        pace.step(seconds, compiling)
    assert pace.left(10, 0) == 30
    pace.step(2, 0)
    assert pace.left(10, 0) == 20


class Screen(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_a_terminal_shows_what_is_under_way(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    out = Screen()
    with contextlib.redirect_stderr(out), Terminal() as terminal:
        progress = make(clock, terminal=terminal, total=4, title="atod on alfworld")
        progress.begin(2, [{"step": 0, "rollout/success": 0.0}, {"step": 3, "rollout/success": 1}])
        progress.advance({"rollout/success": 0.5})
        progress.close()
        progress.close()
    assert "3/4  -:-- left  atod on alfworld" in out.getvalue()
    assert "▁▅" in out.getvalue()
    assert " 50 % in the last step" in out.getvalue()
    assert "step 3/4" not in out.getvalue()  # no lines
