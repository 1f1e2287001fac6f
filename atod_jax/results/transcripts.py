"""Episodes to read: what was seen, said and done, with numbers for each turn.

They are kept twice: `.jsonl` for programs, `.txt` for people.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atod_jax.records import Trajectory, Turn
from atod_jax.results.files import write_text
from atod_jax.texts import one_line, visible

Columns = Mapping[str, Sequence[float]]  # name -> one number per turn
TURN_TEXT = ("observation", "response", "command", "valid", "tokens", "replayed", "problem")


def write_transcripts(
    workdir: Path,
    step: int,
    name: str,
    *,
    episodes: Sequence[Trajectory],
    columns: Sequence[Columns] | None = None,
) -> None:
    """Writes `transcripts/<step>-<name>.jsonl` and `.txt`, one line or section per episode.

    Args:
      workdir: the run's folder.
      step: training step.
      name: what the episodes are, e.g. "train" or "eval".
      episodes: finished episodes.
      columns: per episode, numbers to show with each turn, e.g. {"d": [...], "h": [...],
        "w": [...]} for turn disagreement, uncertainty and weight.

    Raises:
      ValueError: a column does not have one number per turn.
    """
    columns = [{}] * len(episodes) if columns is None else columns
    records = [_episode_record(e, c) for e, c in zip(episodes, columns, strict=True)]
    stem = workdir / "transcripts" / f"{step:06d}-{name}"
    lines = [json.dumps(r, ensure_ascii=False, allow_nan=False) + "\n" for r in records]
    write_text(stem.with_suffix(".jsonl"), "".join(lines))
    write_text(stem.with_suffix(".txt"), "\n".join(_episode_text(r) for r in records))


def episode_text(episode: Trajectory, columns: Columns) -> str:
    """An episode for people; `columns` as for `write_transcripts`."""
    return _episode_text(_episode_record(episode, columns))


# -------------------------------------------------------------------------------------- the records


def _episode_record(episode: Trajectory, columns: Columns) -> dict[str, Any]:
    for name, values in columns.items():
        if len(values) != len(episode.turns):
            raise ValueError(
                f"column {name!r} has {len(values)} values for {len(episode.turns)} turns of task "
                f"{episode.task.id}"
            )
    return {
        "task": episode.task.id,
        "kind": episode.task.kind,
        "group": int(episode.group),
        "success": bool(episode.success),
        "stop": episode.stop.name,
        "total_reward": _finite(episode.total_reward),
        "turns": [
            _turn_record(turn) | {name: _finite(float(v[k])) for name, v in columns.items()}
            for k, turn in enumerate(episode.turns)
        ],
    }


def _turn_record(turn: Turn) -> dict[str, Any]:
    return {
        "observation": turn.observation,
        "response": turn.response,
        "command": turn.command,
        "valid": bool(turn.valid),
        "reward": _finite(float(turn.reward)),
        "tokens": len(turn.action),
    } | {k: v for k, v in (("replayed", turn.replayed), ("problem", turn.problem)) if v}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


# ----------------------------------------------------------------------------------------- the text


def _episode_text(record: Mapping[str, Any]) -> str:
    outcome = "solved" if record["success"] else "not solved"
    task = f"task {one_line(record['task'])} ({one_line(record['kind'])})"
    head = (
        f"{'=' * 100}\n{task}, group {record['group']}: "
        f"{outcome} after {len(record['turns'])} turns, stopped by {record['stop']}, "
        f"reward {record['total_reward']}\n{'=' * 100}\n"
    )
    return head + "".join(_turn_text(k, turn) for k, turn in enumerate(record["turns"]))


def _turn_text(number: int, turn: Mapping[str, Any]) -> str:
    extra = "".join(
        f"  {name} {'not finite' if value is None else format(value, '.4g')}"
        for name, value in turn.items()
        if name not in TURN_TEXT
    )
    valid = "" if turn["valid"] else "  INVALID"
    valid += f"  {turn['problem']}" if "problem" in turn else ""
    if "replayed" in turn:
        extra = "  replayed for the student"
    return (
        f"\n--- turn {number + 1}: {turn['tokens']} tokens{extra}{valid}\n"
        f"{_indented('sees', turn['observation'])}{_indented('says', turn['response'])}"
        f"{_indented('does', turn['command'])}"
    )


def _indented(label: str, text: str) -> str:
    lines = visible(text).splitlines() or [""]
    return "".join(f"{label if i == 0 else '':>4} | {line}\n" for i, line in enumerate(lines))
