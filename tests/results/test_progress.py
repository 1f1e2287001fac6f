"""The sign of life, on a terminal and in a log file."""

import io

from atod_jax.results.progress import Progress


def test_progress_without_a_terminal_prints_a_line_every_few_seconds():
    """6 s per step, from step 10: a line at 6 s, then after 15 s or more, and the last."""
    now, out = [0.0], io.StringIO()
    progress = Progress(
        20, start=10, description="atod", show=("a", "absent"), stream=out, clock=lambda: now[0]
    )
    for done in range(11, 21):
        now[0] += 6.0
        progress.advance({"a": done / 10, "b": 1.0})
    progress.close()
    assert out.getvalue().splitlines() == [
        "step 11/20, 0:54 left  atod  a 1.1",
        "step 14/20, 0:36 left  atod  a 1.4",
        "step 17/20, 0:18 left  atod  a 1.7",
        "step 20/20, 0:00 left  atod  a 2",
    ]


def test_progress_on_a_terminal_draws_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    out = Terminal()
    progress = Progress(4, start=3, show=("success",), stream=out)
    progress.advance({"success": 0.5})
    progress.close()
    progress.close()
    assert "4/4" in out.getvalue()
    assert "success 0.5" in out.getvalue()
