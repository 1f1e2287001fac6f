"""From trajectories to fixed-shape rows (NumPy). Padding lives here and nowhere else."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from atod_jax.records import Trajectory, Turn
from atod_jax.types import Rows, TurnBatch


def pack_turns(
    trajectories: Sequence[Trajectory],
    *,
    minibatch_rows: int,
    prompt_columns: int,
    response_columns: int,
    pad_id: int,
    rng: np.random.Generator,
    teacher_prompt_columns: int = 0,
    anchor_similarity: float = 1.0,
) -> TurnBatch:
    """Shuffles all turns into M equal minibatches of `minibatch_rows` rows each.

    M is the smallest number that fits; the real rows are spread evenly over the minibatches, so no
    optimiser step sees a nearly empty one. Every turn that the student played becomes exactly one
    row; replayed turns become none, but keep their number.

    Args:
      teacher_prompt_columns: 0 where the teacher reads what the student reads.
      anchor_similarity: observations of a group at least this alike share an anchor; 1: equal ones.

    Returns:
      A TurnBatch of NumPy arrays with N = M * minibatch_rows.

    Raises:
      ValueError: a prompt or response is longer than its columns, or there are no turns.
    """
    turns = [
        (b, k, turn)
        for b, t in enumerate(trajectories)
        for k, turn in enumerate(t.turns)
        if not turn.replayed
    ]
    if not turns:
        raise ValueError("no turns to pack: the student played none in this step")
    minibatches = -(-len(turns) // minibatch_rows)
    count = minibatches * minibatch_rows
    rows = _empty_rows(count, prompt_columns, response_columns, pad_id, len(trajectories))
    teacher_prompt = np.full((count, teacher_prompt_columns), pad_id, np.int32)
    teacher_length = np.zeros(count, np.int32)
    anchors = _anchors(
        [(trajectories[b].group, turn.observation) for b, _, turn in turns], anchor_similarity
    )
    for destination, source in zip(
        _spread(len(turns), minibatches, minibatch_rows), rng.permutation(len(turns)), strict=True
    ):
        b, k, turn = turns[source]
        _fill(rows, int(destination), turn)
        rows["traj"][destination] = b
        rows["turn"][destination] = k
        rows["anchor"][destination] = anchors[source]
        if teacher_prompt_columns:
            teacher_length[destination] = _right_align(
                teacher_prompt[destination], turn.teacher_prompt, "teacher prompt"
            )
    _, group = np.unique([t.group for t in trajectories], return_inverse=True)
    table: dict[str, Any] = {  # NumPy where the types say JAX: these go to the devices later
        "returns": np.asarray([t.total_reward for t in trajectories], np.float32),
        "group": group.astype(np.int32),
        "teacher_prompt": teacher_prompt if teacher_prompt_columns else None,
        "teacher_prompt_length": teacher_length if teacher_prompt_columns else None,
    }
    return TurnBatch(rows=Rows(**rows), **table)


def _anchors(seen: Sequence[tuple[int, str]], similarity: float) -> list[int]:
    """A number per (group, observation) that equal ones share.

    With similarity < 1 an observation joins the first earlier one of its group that is alike
    enough, as the released search runs do with 0.9; otherwise it starts a cluster of its own.
    """
    numbers: dict[tuple[int, str], int] = {}
    leaders: dict[int, list[str]] = {}
    for group, text in seen:
        if (group, text) in numbers:
            continue
        alike = None
        if similarity < 1:
            alike = next(
                (lead for lead in leaders.get(group, []) if _ratio(lead, text) >= similarity), None
            )
        if alike is None:
            leaders.setdefault(group, []).append(text)
            numbers[group, text] = len(numbers)
        else:
            numbers[group, text] = numbers[group, alike]
    return [numbers[key] for key in seen]


def _ratio(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


def _empty_rows(n: int, p: int, r: int, pad_id: int, num_trajectories: int) -> dict[str, Any]:
    """The fields of `Rows`, all padding."""
    return {
        "prompt": np.full((n, p), pad_id, np.int32),
        "prompt_length": np.zeros(n, np.int32),
        "action": np.full((n, r), pad_id, np.int32),
        "action_mask": np.zeros((n, r), bool),
        "sampler_logp": np.zeros((n, r), np.float32),
        "traj": np.full(n, num_trajectories, np.int32),
        "turn": np.zeros(n, np.int32),
        "action_valid": np.ones(n, bool),
        "reward": np.zeros(n, np.float32),
        "anchor": np.zeros(n, np.int32),
    }


def _spread(count: int, minibatches: int, minibatch_rows: int) -> np.ndarray:
    """Row numbers that put `count` rows evenly at the front of each minibatch."""
    sizes = [len(part) for part in np.array_split(np.arange(count), minibatches)]
    return np.concatenate([m * minibatch_rows + np.arange(size) for m, size in enumerate(sizes)])


def _fill(rows: Mapping[str, np.ndarray], n: int, turn: Turn) -> None:
    a, columns = len(turn.action), rows["action"].shape[1]
    if a > columns:
        raise ValueError(
            f"a turn has {a} action tokens, the batch holds {columns}; raise "
            "sampling.max_new_tokens"
        )
    rows["prompt_length"][n] = _right_align(rows["prompt"][n], turn.prompt, "prompt")
    rows["action"][n, :a] = turn.action
    rows["action_mask"][n, :a] = True
    rows["sampler_logp"][n, :a] = turn.logp
    rows["action_valid"][n] = turn.valid
    rows["reward"][n] = turn.reward


def _right_align(row: np.ndarray, ids: np.ndarray, what: str) -> int:
    """Writes ids at the end of a row of padding; returns their number."""
    if len(ids) > len(row):
        raise ValueError(
            f"a turn has {len(ids)} {what} tokens, the batch holds {len(row)}; add a longer bucket "
            "to sampling.prompt_buckets"
        )
    row[len(row) - len(ids) :] = ids
    return len(ids)
