"""The panel as text."""

import math

from rich.console import Console

from atod_jax.results.panel import History, Status, Underway, clock_text, panel, sparkline

STEP = {
    "step": 20, "rollout/success": 0.5, "mix/kappa": 0.9, "mix/rho": 1.1, "kl/token": None,
    "turn_weight/mean": 0.7, "turn_weight/min": 0.1, "turn_weight/max": 1.0,
    "seconds/rollout": 1.25, "seconds/pack": 0.01, "seconds/update": 0.5, "seconds/step": 2.0,
    "rollout/rows": 1000, "rollout/action_tokens": 4.0, "env/restarts": 1.0,
}  # fmt: skip
FOUND = {
    "step": 20, "eval/success": 0.48, "eval/success_low": 0.42, "eval/success_high": 0.54,
    "eval/success/look": 0.3, "eval/success/evil\x1b[2J": 0.6,
}  # fmt: skip


def seen(status, *records, width=80):
    history = History()
    for record in records:
        history.book(record)
    console = Console(width=width)
    with console.capture() as shown:
        console.print(panel(status, history))
    return [line.rstrip() for line in shown.get().splitlines()]


def test_everything_that_is_known_has_a_row():
    status = Status("atod on alfworld", 20, 60, 130.0, Underway("step 20", 128, 256))
    assert seen(status, STEP | {"rollout/success": 0.0}, FOUND, STEP) == [
        "step        ━━━━━━━━━━                     20/60  2:10 left  atod on alfworld",
        "success     ▁▅ 50 % in the last step",
        "held out    ▄ 48 % [42, 54] at step 20",
        r"  by type   look 30, evil\x1b[2J 60",
        "signal      kappa 0.90  rho 1.10  weights 0.70 (0.10 to 1.00)  kl nan",
        "phases      rollout 1.2 s  update 0.5 s",
        "speed       2.0 s/step  3,200 tokens/s written  2 restarts of environments",
        "playing     ━━━━━━━━━━━━━━━                128/256  step 20",
    ]


def test_what_is_not_known_has_none():
    assert len(seen(Status("sft", 0, 3, math.nan))) == 1
    assert seen(Status("", 0, 0, math.nan)) == []
    (only,) = seen(Status("", 0, 0, math.nan, Underway("T=1", 1, 2)))
    assert only.endswith("1/2  T=1")


def test_rows_fit_a_narrow_terminal():
    lines = seen(Status("atod on alfworld", 15, 60, 1.0), FOUND, STEP, width=36)
    assert max(map(len, lines)) <= 36
    assert lines[-2] == "phases      rollout 1.2 s  update 0…"


def test_a_sparkline_is_of_means_and_a_clock_of_hours():
    assert sparkline([0, 0.125, 0.5, 1, math.nan]) == "▁▂▅█ "
    assert sparkline([0, 0.25, 1, 1], width=2) == "▂█"
    assert sparkline([]) == ""
    assert [clock_text(s) for s in (9.4, 3723, math.nan)] == ["0:09", "1:02:03", "-:--"]
