"""Packing: every turn becomes one row, spread evenly, whatever the padding."""

import dataclasses

import numpy as np
import pytest

from atod_jax.episodes.packing import pack_turns
from atod_jax.records import StopReason, Task, Trajectory, Turn


def make_turn(rng, prompt=5, action=3, reward=0.0):
    return Turn(
        prompt=rng.integers(1, 50, prompt).astype(np.int32),
        action=rng.integers(1, 50, action).astype(np.int32),
        logp=rng.normal(size=action).astype(np.float32),
        observation="o",
        response="r",
        command="c",
        valid=bool(rng.integers(2)),
        reward=reward,
    )


def make_trajectories(rng, lengths, group_size=2):
    return [
        Trajectory(
            task=Task(id=str(b), kind="k", payload=None),
            group=10 + b // group_size,
            turns=tuple(
                make_turn(rng, rng.integers(1, 8), rng.integers(1, 4), 10.0 * (k == n - 1))
                for k in range(n)
            ),
            success=True,
            stop=StopReason.done,
        )
        for b, n in enumerate(lengths)
    ]


def pack(trajectories, **changes):
    options = {
        "minibatch_rows": 8, "prompt_columns": 8, "response_columns": 4, "pad_id": 0,
        "rng": np.random.default_rng(0),
    }  # fmt: skip
    return pack_turns(trajectories, **(options | changes))


def test_every_turn_is_one_row_with_its_own_ids():
    trajectories = make_trajectories(np.random.default_rng(1), [3, 1, 5, 2])
    batch = pack(trajectories)
    rows = batch.rows
    seen = set()
    for n in np.flatnonzero(rows.traj < 4):
        b, k = int(rows.traj[n]), int(rows.turn[n])
        turn = trajectories[b].turns[k]
        seen.add((b, k))
        assert rows.prompt[n, 8 - rows.prompt_length[n] :].tolist() == turn.prompt.tolist()
        assert rows.action[n][rows.action_mask[n]].tolist() == turn.action.tolist()
        np.testing.assert_array_equal(rows.sampler_logp[n][rows.action_mask[n]], turn.logp)
        assert rows.action_mask[n, : len(turn.action)].all()
        assert rows.action_valid[n] == turn.valid
    assert seen == {(b, k) for b, n in enumerate([3, 1, 5, 2]) for k in range(n)}
    np.testing.assert_array_equal(batch.returns, [10, 10, 10, 10])
    np.testing.assert_array_equal(batch.group, [0, 0, 1, 1])


def test_rows_are_spread_evenly_and_padding_is_inert():
    batch = pack(make_trajectories(np.random.default_rng(1), [6, 6, 5, 2]))  # 19 rows -> 3 x 8
    real = (batch.rows.traj < 4).reshape(3, 8)
    assert sorted(real.sum(1)) == [6, 6, 7]
    padding = ~real.ravel()
    assert not batch.rows.action_mask[padding].any()
    assert (batch.rows.traj[padding] == 4).all()


def test_the_shuffle_moves_rows_and_nothing_else():
    trajectories = make_trajectories(np.random.default_rng(1), [3, 1, 5, 2])
    a, b = (pack(trajectories, rng=np.random.default_rng(s)).rows for s in (0, 1))
    assert not np.array_equal(a.traj, b.traj)
    order_a, order_b = (np.lexsort((r.turn, r.traj)) for r in (a, b))
    np.testing.assert_array_equal(a.prompt[order_a], b.prompt[order_b])
    np.testing.assert_array_equal(a.sampler_logp[order_a], b.sampler_logp[order_b])


def replace_turn(trajectory, k, **changes):
    turns = list(trajectory.turns)
    turns[k] = dataclasses.replace(turns[k], **changes)
    return dataclasses.replace(trajectory, turns=tuple(turns))


def test_replayed_turns_become_no_rows_but_keep_their_number():
    trajectories = make_trajectories(np.random.default_rng(1), [3, 2])
    nothing = np.zeros(0, np.int32)
    played = {"prompt": nothing, "action": nothing, "logp": nothing, "replayed": True}
    trajectories[0] = replace_turn(replace_turn(trajectories[0], 0, **played), 1, **played)
    rows = pack(trajectories).rows
    real = rows.traj < 2
    assert sorted(zip(rows.traj[real], rows.turn[real])) == [(0, 2), (1, 0), (1, 1)]
    with pytest.raises(ValueError, match="the student played none"):
        pack([replace_turn(trajectories[0], 2, **played)])


def test_rewards_stay_with_their_turn():
    trajectories = make_trajectories(np.random.default_rng(1), [3, 1, 5, 2])
    rows = pack(trajectories).rows
    for n in np.flatnonzero(rows.traj < 4):
        turn = trajectories[rows.traj[n]].turns[rows.turn[n]]
        assert rows.reward[n] == turn.reward
    assert not rows.reward[rows.traj == 4].any()


def seen(trajectories, **options):
    """{(trajectory, turn): anchor} of a packed batch."""
    rows = pack(trajectories, **options).rows
    real = np.flatnonzero(rows.traj < len(trajectories))
    return {(int(rows.traj[n]), int(rows.turn[n])): int(rows.anchor[n]) for n in real}


def test_turns_that_saw_the_same_share_an_anchor_within_their_group():
    trajectories = make_trajectories(np.random.default_rng(1), [2, 2, 1])  # groups 10, 10, 11
    texts = [("a fridge", "a desk"), ("a desk", "a fridgf"), ("a desk",)]
    for b, row in enumerate(texts):
        for k, text in enumerate(row):
            trajectories[b] = replace_turn(trajectories[b], k, observation=text)
    exact = seen(trajectories)
    assert exact[0, 1] == exact[1, 0] != exact[2, 0]
    assert exact[0, 0] != exact[1, 1]
    assert exact == seen(trajectories, rng=np.random.default_rng(5))
    alike = seen(trajectories, anchor_similarity=0.85)  # one letter of eight differs
    assert alike[0, 0] == alike[1, 1] != alike[0, 1]
    assert alike[0, 1] == alike[1, 0]


def test_teacher_prompts_are_packed_beside_the_students():
    trajectories = make_trajectories(np.random.default_rng(1), [2, 1])
    for b, t in enumerate(trajectories):
        for k in range(len(t.turns)):
            ids = np.arange(1, 4 + b + k, dtype=np.int32)
            trajectories[b] = replace_turn(trajectories[b], k, teacher_prompt=ids)
    batch = pack(trajectories, teacher_prompt_columns=6)
    for n in np.flatnonzero(batch.rows.traj < 2):
        length = 3 + batch.rows.traj[n] + batch.rows.turn[n]
        assert batch.teacher_prompt_length[n] == length
        padding = [0] * (6 - length)
        assert batch.teacher_prompt[n].tolist() == [*padding, *range(1, length + 1)]
    assert pack(trajectories).teacher_prompt is None
    with pytest.raises(ValueError, match=r"4 teacher prompt tokens.*sampling\.prompt_buckets"):
        pack(trajectories, teacher_prompt_columns=3)


@pytest.mark.parametrize(("columns", "name"), [((3, 4), "prompt"), ((8, 1), "max_new_tokens")])
def test_too_long_turns_name_the_option(columns, name):
    trajectories = make_trajectories(np.random.default_rng(1), [3, 1, 5, 2])
    with pytest.raises(ValueError, match=name):
        pack(trajectories, prompt_columns=columns[0], response_columns=columns[1])
