"""From trajectories to fixed-shape rows (NumPy). Padding lives here and nowhere else."""

from collections.abc import Sequence

import numpy as np

from atod_jax.types import Rows, Trajectory, Turn, TurnBatch


def pack_turns(
    trajectories: Sequence[Trajectory],
    *,
    minibatch_rows: int,
    prompt_columns: int,
    response_columns: int,
    pad_id: int,
    rng: np.random.Generator,
) -> TurnBatch:
    """Shuffles all turns into M equal minibatches of `minibatch_rows` rows each.

    M is the smallest number that fits; the real rows are spread evenly over the minibatches, so no
    optimiser step sees a nearly empty one. Every turn becomes exactly one row.

    Returns:
      A TurnBatch of NumPy arrays with N = M * minibatch_rows.
    Raises:
      ValueError: a prompt or response is longer than its columns, or there are no turns.
    """
    turns = [(b, k, turn) for b, t in enumerate(trajectories) for k, turn in enumerate(t.turns)]
    if not turns:
        raise ValueError("no turns to pack: every trajectory of this step is empty")
    minibatches = -(-len(turns) // minibatch_rows)
    rows = _empty_rows(
        minibatches * minibatch_rows, prompt_columns, response_columns, pad_id, len(trajectories)
    )
    for destination, source in zip(
        _spread(len(turns), minibatches, minibatch_rows), rng.permutation(len(turns))
    ):
        b, k, turn = turns[source]
        _fill(rows, int(destination), turn)
        rows.traj[destination] = b
        rows.turn[destination] = k
    _, group = np.unique([t.group for t in trajectories], return_inverse=True)
    return TurnBatch(
        rows=rows,
        returns=np.asarray([t.total_reward for t in trajectories], np.float32),
        group=group.astype(np.int32),
    )


def _empty_rows(n: int, p: int, r: int, pad_id: int, num_trajectories: int) -> Rows:
    return Rows(
        prompt=np.full((n, p), pad_id, np.int32),
        prompt_length=np.zeros(n, np.int32),
        action=np.full((n, r), pad_id, np.int32),
        action_mask=np.zeros((n, r), bool),
        sampler_logp=np.zeros((n, r), np.float32),
        traj=np.full(n, num_trajectories, np.int32),
        turn=np.zeros(n, np.int32),
        action_valid=np.ones(n, bool),
    )


def _spread(count: int, minibatches: int, minibatch_rows: int) -> np.ndarray:
    """Row numbers that put `count` rows evenly at the front of each minibatch."""
    sizes = [len(part) for part in np.array_split(np.arange(count), minibatches)]
    return np.concatenate([m * minibatch_rows + np.arange(size) for m, size in enumerate(sizes)])


def _fill(rows: Rows, n: int, turn: Turn) -> None:
    p, a = len(turn.prompt), len(turn.action)
    columns = rows.prompt.shape[1], rows.action.shape[1]
    if p > columns[0] or a > columns[1]:
        raise ValueError(
            f"a turn has {p} prompt and {a} action tokens, the batch holds {columns[0]} and "
            f"{columns[1]}; raise sampling.prompt_buckets or sampling.max_new_tokens"
        )
    rows.prompt[n, columns[0] - p :] = turn.prompt
    rows.prompt_length[n] = p
    rows.action[n, :a] = turn.action
    rows.action_mask[n, :a] = True
    rows.sampler_logp[n, :a] = turn.logp
    rows.action_valid[n] = turn.valid
