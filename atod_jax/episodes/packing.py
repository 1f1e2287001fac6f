"""From trajectories to rows in lines of one length (NumPy). Padding lives here and nowhere else."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from atod_jax.records import Trajectory, Turn
from atod_jax.types import Lines, Rows, TurnBatch


class Form(NamedTuple):
    """The shape of what is packed."""

    columns: int  # W, of a line
    response_columns: int  # R
    rows: int  # M, places for turns in a line
    micro_lines: int  # lines of a micro-batch
    teacher_columns: int = 0  # of the lines that a teacher reads; 0: it reads the student's


class Batch(NamedTuple):
    """Turns as arrays of the host."""

    turns: TurnBatch
    minibatch: tuple[int, ...]  # of every micro-batch, in order; -1 where it is empty


def pack_turns(
    trajectories: Sequence[Trajectory],
    *,
    form: Form,
    minibatch_rows: int,
    pad_id: int,
    rng: np.random.Generator,
    anchor_similarity: float = 1.0,
) -> Batch:
    """Shuffles all turns into minibatches, and puts the turns of each one after another in lines.

    There are as few minibatches as hold at most `minibatch_rows` turns, equally many each. Every
    turn that the student played becomes exactly one row; replayed turns become none, but keep their
    number. Empty micro-batches at the end make their number a power of two: few sizes compile.

    Args:
      trajectories: B of them.
      form: of the lines.
      minibatch_rows: turns of an optimiser step, at most.
      pad_id: fills what is empty.
      rng: of the shuffle.
      anchor_similarity: observations of a group at least this alike share an anchor; 1: equal ones.

    Raises:
      ValueError: a turn is longer than a line or has more tokens than its columns, or there are no
        turns.
    """
    turns = [
        (b, k, turn)
        for b, t in enumerate(trajectories)
        for k, turn in enumerate(t.turns)
        if not turn.replayed
    ]
    if not turns:
        raise ValueError("no turns to pack: the student played none in this step")
    sizes = [_sizes(turn, form) for _, _, turn in turns]
    tokens = [len(turn.action) for _, _, turn in turns]
    minibatches = np.array_split(rng.permutation(len(turns)), -(-len(turns) // minibatch_rows))
    lines: list[list[int]] = []
    minibatch: list[int] = []
    for number, members in enumerate(minibatches):
        own = _dealt(_lines(members, sizes, form), tokens, form)
        lines += own
        minibatch += [number] * (len(own) // form.micro_lines)
    minibatch += [-1] * ((1 << (len(minibatch) - 1).bit_length()) - len(minibatch))
    lines += [[]] * (len(minibatch) * form.micro_lines - len(lines))
    return Batch(
        _filled(trajectories, turns, lines, form, pad_id, anchor_similarity), tuple(minibatch)
    )


def _sizes(turn: Turn, form: Form) -> tuple[int, int]:
    """Columns of a turn in the student's and in the teacher's lines."""
    action = len(turn.action)
    if action > form.response_columns:
        raise ValueError(
            f"a turn has {action} action tokens, the batch holds {form.response_columns}; raise "
            "sampling.max_new_tokens"
        )
    student = len(turn.prompt) + action - 1
    teacher = len(turn.teacher_prompt) + action - 1 if turn.teacher_prompt is not None else 0
    for size, columns, what in (
        (student, form.columns, "prompt"),
        (teacher, form.teacher_columns, "teacher prompt"),
    ):
        if size > columns:
            raise ValueError(
                f"a turn has {size - action + 1} {what} tokens and {action} of its action, a line "
                f"holds {columns}; add a longer bucket to sampling.prompt_buckets"
            )
    return student, teacher


def _lines(members: np.ndarray, sizes: Sequence[tuple[int, int]], form: Form) -> list[list[int]]:
    """Turns put into few lines: the longest first, each where it fits first."""
    if form.rows == 1:
        return [[int(turn)] for turn in members]
    lines: list[list[int]] = []
    left: list[tuple[int, int]] = []
    for turn in sorted(members.tolist(), key=lambda turn: -sum(sizes[turn])):
        student, teacher = sizes[turn]
        for at, (ours, theirs) in enumerate(left):
            if student <= ours and teacher <= theirs and len(lines[at]) < form.rows:
                break
        else:
            at = len(lines)
            lines.append([])
            left.append((form.columns, form.teacher_columns))
        lines[at].append(turn)
        left[at] = (left[at][0] - student, left[at][1] - teacher)
    return lines


def _dealt(lines: list[list[int]], tokens: Sequence[int], form: Form) -> list[list[int]]:
    """Lines in whole micro-batches, filled up by empty ones, each with about as many action tokens:
    all have room for those of the fullest. Heavy lines lie beside light ones, since several devices
    may share a micro-batch."""
    lines = lines + [[]] * (-len(lines) % form.micro_lines)
    if form.rows == 1:
        return lines
    lines.sort(key=lambda line: -sum(tokens[turn] for turn in line))
    count, dealt = len(lines) // form.micro_lines, []
    rounds = [lines[n : n + count] for n in range(0, len(lines), count)]
    rounds[1::2] = [one[::-1] for one in rounds[1::2]]
    for own in zip(*rounds, strict=True):
        beside = zip(own, reversed(own), strict=True)
        dealt += [line for pair in beside for line in pair][: len(own)]
    return dealt


def _filled(
    trajectories: Sequence[Trajectory],
    turns: Sequence[tuple[int, int, Turn]],
    lines: Sequence[Sequence[int]],
    form: Form,
    pad_id: int,
    anchor_similarity: float,
) -> TurnBatch:
    """The arrays of a batch whose lines hold these turns."""
    count = len(lines) * form.rows
    rows = _empty_rows(count, form.response_columns, pad_id, len(trajectories))
    ours = _empty_lines(len(lines), count, form.columns, pad_id)
    theirs = _empty_lines(len(lines), count, form.teacher_columns, pad_id)
    anchors = _anchors(
        [(trajectories[b].group, turn.observation) for b, _, turn in turns], anchor_similarity
    )
    for line, members in enumerate(lines):
        starts = [0, 0]
        for place, member in enumerate(members):
            b, k, turn = turns[member]
            row = line * form.rows + place
            _fill(rows, row, turn)
            rows["traj"][row], rows["turn"][row], rows["anchor"][row] = b, k, anchors[member]
            prompts = (turn.prompt, turn.teacher_prompt)
            for which, (read, prompt) in enumerate(zip((ours, theirs), prompts, strict=True)):
                if read is not None and prompt is not None:
                    ids = np.concatenate([prompt, turn.action[:-1]])
                    read.tokens[line, starts[which] : starts[which] + len(ids)] = ids
                    read.prompt_length[row] = len(prompt)
                    starts[which] += len(ids)
    _, group = np.unique([t.group for t in trajectories], return_inverse=True)
    returns: Any = np.asarray([t.total_reward for t in trajectories], np.float32)
    groups: Any = group.astype(np.int32)
    assert ours is not None
    return TurnBatch(
        rows=Rows(lines=ours, **rows), returns=returns, group=groups, teacher_lines=theirs
    )


def _empty_lines(lines: int, rows: int, columns: int, pad_id: int) -> Lines | None:
    if not columns:
        return None
    return Lines(
        tokens=np.full((lines, columns), pad_id, np.int32),
        prompt_length=np.zeros(rows, np.int32),
    )


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


def _empty_rows(n: int, r: int, pad_id: int, num_trajectories: int) -> dict[str, Any]:
    """The fields of `Rows` but for its lines, all padding."""
    return {
        "action": np.full((n, r), pad_id, np.int32),
        "action_mask": np.zeros((n, r), bool),
        "sampler_logp": np.zeros((n, r), np.float32),
        "traj": np.full(n, num_trajectories, np.int32),
        "turn": np.zeros(n, np.int32),
        "action_valid": np.ones(n, bool),
        "reward": np.zeros(n, np.float32),
        "anchor": np.zeros(n, np.int32),
    }


def _fill(rows: Mapping[str, np.ndarray], n: int, turn: Turn) -> None:
    a = len(turn.action)
    rows["action"][n, :a] = turn.action
    rows["action_mask"][n, :a] = True
    rows["sampler_logp"][n, :a] = turn.logp
    rows["action_valid"][n] = turn.valid
    rows["reward"][n] = turn.reward
