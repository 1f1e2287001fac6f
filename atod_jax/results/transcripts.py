"""Episodes to read: what was seen, said and done, with numbers for each turn.

They are kept twice: `.jsonl` for programs, `.txt` for people.
"""

import gzip
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atod_jax.records import Instead, Speller, Trace, Trajectory, Turn
from atod_jax.results.files import write_bytes, write_text
from atod_jax.texts import one_line, visible

DIGITS = 4  # of numbers of tokens
NUMBERS = ("reward", "d", "h", "w")  # of a turn, in the text for people


def write_transcripts(
    workdir: Path,
    step: int,
    name: str,
    *,
    episodes: Sequence[Trajectory],
    traces: Sequence[Trace] | None = None,
    speller: Speller | None = None,
) -> str:
    """Writes `transcripts/<step>-<name>.jsonl` and `.txt`, one line or section per episode; returns
    the latter.

    Args:
      workdir: the run's folder.
      step: training step.
      name: what the episodes are, e.g. "train" or "eval".
      episodes: finished episodes.
      traces: per episode, what is known of its turns and tokens.
      speller: for prompts and tokens as text; None: without them.
    """
    found = list(records(episodes, traces, speller))
    stem = workdir / "transcripts" / f"{step:06d}-{name}"
    write_text(stem.with_suffix(".jsonl"), "".join(map(_line, found)))
    text = "\n".join(_episode_text(r) for r in found)
    write_text(stem.with_suffix(".txt"), text)
    return text


def write_records(path: Path, episodes: Iterable[Mapping[str, Any]]) -> None:
    """Writes many `records` for programs, compressed: prompts repeat each other."""
    lines = "".join(map(_line, episodes))
    write_bytes(path, gzip.compress(lines.encode("utf-8", "backslashreplace"), mtime=0))


def episode_text(episode: Trajectory, columns: Mapping[str, Sequence[float]]) -> str:
    """An episode for people, with numbers for each turn."""
    return _episode_text(_episode_record(episode, Trace(columns), None), tuple(columns))


# -------------------------------------------------------------------------------------- the records


def records(
    episodes: Sequence[Trajectory], traces: Sequence[Trace] | None, speller: Speller | None
) -> Iterator[dict[str, Any]]:
    """Episodes as plain JSON values.

    Raises:
      ValueError: a trace does not have one number per turn.
    """
    traces = [Trace()] * len(episodes) if traces is None else traces
    for episode, trace in zip(episodes, traces, strict=True):
        yield _episode_record(episode, trace, speller)


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def _episode_record(episode: Trajectory, trace: Trace, speller: Speller | None) -> dict[str, Any]:
    for name, values in {**trace.turns, **trace.tokens}.items():
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
        "score": _finite(episode.score),
        "stop": episode.stop.name,
        "total_reward": _finite(episode.total_reward),
        "turns": [
            _turn_record(turn)
            | {name: _finite(float(v[k])) for name, v in trace.turns.items()}
            | (_spelled(turn, k, trace, speller) if speller and not turn.replayed else {})
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


def _spelled(turn: Turn, k: int, trace: Trace, speller: Speller) -> dict[str, Any]:
    """The prompt as it was read, and the tokens of the action with all that is known of them."""
    streams = {"sampler": turn.logp} | {name: v[k] for name, v in trace.tokens.items()}
    instead = trace.instead[k] if trace.instead else ()
    return {
        "prompt": speller.text(turn.prompt),
        "pieces": speller.pieces(turn.action),
        "streams": {name: list(map(_rounded, x)) for name, x in streams.items() if len(x)},
    } | ({"instead": [_choices(i, speller) for i in instead]} if instead else {})


def _choices(instead: Instead, speller: Speller) -> list[Any]:
    ids = np.asarray([i for i, _ in instead.choices], np.int32)
    logp = [_rounded(x) for _, x in instead.choices]
    words = [speller.pieces(ids[n : n + 1])[0] for n in range(len(ids))]
    return [instead.token, [list(pair) for pair in zip(words, logp, strict=True)]]


def _rounded(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


# ----------------------------------------------------------------------------------------- the text


def _episode_text(record: Mapping[str, Any], numbers: Sequence[str] = NUMBERS) -> str:
    outcome = "solved" if record["success"] else "not solved"
    task = f"task {one_line(record['task'])} ({one_line(record['kind'])})"
    head = (
        f"{'=' * 100}\n{task}, group {record['group']}: "
        f"{outcome} after {len(record['turns'])} turns, stopped by {record['stop']}, "
        f"reward {record['total_reward']}\n{'=' * 100}\n"
    )
    shown = ["reward", *(name for name in numbers if name != "reward")]
    return head + "".join(_turn_text(k, turn, shown) for k, turn in enumerate(record["turns"]))


def _turn_text(number: int, turn: Mapping[str, Any], numbers: Sequence[str]) -> str:
    extra = "".join(
        f"  {name} {'not finite' if turn[name] is None else format(turn[name], '.4g')}"
        for name in numbers
        if name in turn
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
