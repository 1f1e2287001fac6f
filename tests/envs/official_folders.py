"""Writes recorded problems as the official data folders hold them."""

import json
import lzma
from pathlib import Path

GRAMMAR = '"task": [{"rhs": "Your task is to: UNKNOWN GOAL."}]'


def records(path: Path) -> list[dict]:
    """The lines of a recorded file."""
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write_trial(
    root: Path, record: dict, changes: dict | None = None, *, domain: str = "", grammar=GRAMMAR
) -> Path:
    """Writes the trial folder of a recorded game below ROOT/json_2.1.1; returns its game file.

    `changes` replaces entries of the game file, or removes those given as None.
    """
    folder = root / "json_2.1.1" / record["split"] / record["id"]
    folder.mkdir(parents=True)
    (folder / "traj_data.json").write_text(json.dumps({"task_type": record["task_type"]}))
    (folder / "initial_state.pddl").write_text(record["pddl_problem"])
    entries = {
        "pddl_domain": domain,
        "grammar": grammar.replace("UNKNOWN GOAL", record["goal"]),
        "pddl_problem": record["pddl_problem"],
        "solvable": True,
        "walkthrough": record["walkthrough"],
    } | (changes or {})
    path = folder / "game.tw-pddl"
    path.write_text(json.dumps({k: v for k, v in entries.items() if v is not None}))
    return path
