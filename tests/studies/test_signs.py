"""Early signs against what a run comes to, and how far that is from its teacher."""

from pathlib import Path

from made_runs import result

from atod_jax.results.runs import RunRecord
from atod_jax.studies.found import Found
from atod_jax.studies.plan import Cell
from atod_jax.studies.signs import outcome


def run(gap, solved, teacher):
    """Ends at `solved`; only what it records in steps 10 to 19 counts."""
    gaps = {9: 50.0, 10: gap - 1, 19: gap + 1, 20: -50.0}
    records = [{"step": step, "loss/total": 0.0, "kl/verb": value} for step, value in gaps.items()]
    shares = {"final": solved, "teacher": teacher}
    results = {role: {1.0: result(share, 1.0, 40, "t")} for role, share in shares.items()}
    return RunRecord(Path("x"), {}, records, results)


def test_a_sign_is_ranked_against_the_end_and_against_the_distance_to_the_teacher():
    """What ends highest began with the largest gap, and is furthest below its teacher."""
    runs = {i: run(i, 0.1 * (i + 1), 0.25 * i) for i in range(5)}
    one, other = (Found(Cell(name, "opd", {}), runs) for name in "ab")
    every = {"a": [one, one], "b": [other]}  # b has five runs, too few by itself
    rows = [row for row in outcome(every, ("a", "b")).splitlines() if "first token" in row]
    assert rows == [
        "| gap on the first token | +1.00 (10) |",
        "| gap on the first token | -1.00 (10) | -1.00 (15) |",
    ]
    assert outcome({"b": [other]}) == ""
