"""Packing: every turn becomes one row, spread evenly, whatever the padding."""

import dataclasses

import numpy as np
import pytest

from atod_jax.episodes.packing import Form, pack_turns
from atod_jax.records import StopReason, Task, Trajectory, Turn

FORM = Form(columns=11, response_columns=4, rows=1, micro_lines=2)
PACKED = Form(columns=24, response_columns=4, rows=3, micro_lines=2)


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


def pack(trajectories, *, form=FORM, **changes):
    options = {"minibatch_rows": 8, "pad_id": 0, "rng": np.random.default_rng(0)}
    return pack_turns(trajectories, form=form, **(options | changes))


def read(lines, n, count):
    """The columns of row n of lines with `count` action tokens: where it must stand."""
    per_line = len(lines.prompt_length) // len(lines.tokens)
    line, place = divmod(n, per_line)
    lengths = (
        lines.prompt_length.reshape(-1, per_line)[line] + count.reshape(-1, per_line)[line] - 1
    )
    start = np.maximum(lengths[:place], 0).sum()
    return lines.tokens[line, start : start + lengths[place]]


@pytest.mark.parametrize("form", [FORM, PACKED])
def test_every_turn_is_one_row_with_its_own_ids(form):
    trajectories = make_trajectories(np.random.default_rng(1), [3, 1, 5, 2])
    batch = pack(trajectories, form=form).turns
    rows = batch.rows
    count = rows.action_mask.sum(axis=1)
    seen = set()
    for n in np.flatnonzero(rows.traj < 4):
        b, k = int(rows.traj[n]), int(rows.turn[n])
        turn = trajectories[b].turns[k]
        seen.add((b, k))
        assert read(rows.lines, n, count).tolist() == [*turn.prompt, *turn.action[:-1]]
        assert rows.lines.prompt_length[n] == len(turn.prompt)
        assert rows.action[n][rows.action_mask[n]].tolist() == turn.action.tolist()
        np.testing.assert_array_equal(rows.sampler_logp[n][rows.action_mask[n]], turn.logp)
        assert rows.action_mask[n, : len(turn.action)].all()
        assert rows.action_valid[n] == turn.valid
    assert seen == {(b, k) for b, n in enumerate([3, 1, 5, 2]) for k in range(n)}
    np.testing.assert_array_equal(batch.returns, [10, 10, 10, 10])
    np.testing.assert_array_equal(batch.group, [0, 0, 1, 1])


@pytest.mark.parametrize("form", [FORM, PACKED])
def test_minibatches_have_equally_many_turns_and_padding_is_inert(form):
    batch, minibatch = pack(make_trajectories(np.random.default_rng(1), [6, 6, 5, 2]), form=form)
    rows, per = batch.rows, form.micro_lines * form.rows  # 19 turns
    of_row = np.repeat(minibatch, per)
    real = rows.traj < 4
    assert sorted(real[of_row == m].sum() for m in range(3)) == [6, 6, 7]
    assert not real[of_row == -1].any()
    assert len(minibatch) in (4, 8, 16)  # a power of two
    assert not rows.action_mask[~real].any()
    assert (rows.traj[~real] == 4).all()
    assert not rows.lines.prompt_length[~real].any()


def test_the_members_of_a_minibatch_do_not_depend_on_the_lines():
    trajectories = make_trajectories(np.random.default_rng(1), [6, 6, 5, 2])

    def members(form):
        batch, minibatch = pack(trajectories, form=form)
        rows, of_row = batch.rows, np.repeat(minibatch, form.micro_lines * form.rows)
        real = np.flatnonzero(rows.traj < 4)
        return {(int(of_row[n]), int(rows.traj[n]), int(rows.turn[n])) for n in real}

    assert members(FORM) == members(PACKED)


def test_lines_are_filled_well_with_prompts_of_a_language_model():
    """Prompts of 450 tokens on average and responses of 100, as real games have them."""
    rng = np.random.default_rng(0)
    prompts = np.clip(rng.normal(455, 120, 1000), 270, 1000).astype(int)
    responses = np.clip(rng.gamma(1.6, 62, 1000), 8, 512).astype(int)
    turns = [make_turn(rng, p, a) for p, a in zip(prompts, responses)]
    task = Task(id="t", kind="k", payload=None)
    whole = [Trajectory(task=task, group=0, turns=tuple(turns), success=True, stop=StopReason.done)]
    form = Form(columns=2560, response_columns=512, rows=8, micro_lines=4)
    batch, minibatch = pack(whole, form=form, minibatch_rows=256)
    computed = sum(m >= 0 for m in minibatch) * form.micro_lines * form.columns
    assert batch.rows.action_mask.any(axis=1).sum() == 1000
    assert (prompts + responses).sum() / computed > 0.9
    # the last micro-batch of a minibatch is no lighter than the others
    tokens = batch.rows.action_mask.reshape(len(minibatch), -1).sum(axis=1)
    for number in range(max(minibatch) + 1):
        own = tokens[np.array(minibatch) == number]
        assert own.max() < 1.25 * own.mean(), own


def test_the_shuffle_moves_rows_and_nothing_else():
    trajectories = make_trajectories(np.random.default_rng(1), [3, 1, 5, 2])
    a, b = (pack(trajectories, rng=np.random.default_rng(s)).turns.rows for s in (0, 1))
    assert not np.array_equal(a.traj, b.traj)
    order_a, order_b = (np.lexsort((r.turn, r.traj)) for r in (a, b))
    np.testing.assert_array_equal(a.action[order_a], b.action[order_b])
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
    rows = pack(trajectories).turns.rows
    real = rows.traj < 2
    assert sorted(zip(rows.traj[real], rows.turn[real])) == [(0, 2), (1, 0), (1, 1)]
    with pytest.raises(ValueError, match="the student played none"):
        pack([replace_turn(trajectories[0], 2, **played)])


def test_rewards_stay_with_their_turn():
    trajectories = make_trajectories(np.random.default_rng(1), [3, 1, 5, 2])
    rows = pack(trajectories).turns.rows
    for n in np.flatnonzero(rows.traj < 4):
        turn = trajectories[rows.traj[n]].turns[rows.turn[n]]
        assert rows.reward[n] == turn.reward
    assert not rows.reward[rows.traj == 4].any()


def seen(trajectories, **options):
    """{(trajectory, turn): anchor} of a packed batch."""
    rows = pack(trajectories, **options).turns.rows
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


@pytest.mark.parametrize("form", [FORM, PACKED])
def test_teacher_prompts_are_packed_beside_the_students(form):
    trajectories = make_trajectories(np.random.default_rng(1), [2, 1])
    for b, t in enumerate(trajectories):
        for k in range(len(t.turns)):
            ids = np.arange(1, 4 + b + k, dtype=np.int32)
            trajectories[b] = replace_turn(trajectories[b], k, teacher_prompt=ids)
    batch = pack(trajectories, form=form._replace(teacher_columns=form.columns - 2)).turns
    count = batch.rows.action_mask.sum(axis=1)
    for n in np.flatnonzero(batch.rows.traj < 2):
        b, k = batch.rows.traj[n], batch.rows.turn[n]
        told = [*range(1, 4 + b + k), *trajectories[b].turns[k].action[:-1]]
        assert read(batch.teacher_lines, n, count).tolist() == told
    plain = make_trajectories(np.random.default_rng(1), [2, 1])
    assert pack(plain).turns.teacher_lines is None
    with pytest.raises(ValueError, match=r"4 teacher prompt tokens.*sampling\.prompt_buckets"):
        pack(trajectories, form=form._replace(teacher_columns=4))


@pytest.mark.parametrize(
    ("change", "name"), [({"columns": 5}, "prompt"), ({"response_columns": 1}, "max_new_tokens")]
)
def test_too_long_turns_name_the_option(change, name):
    trajectories = make_trajectories(np.random.default_rng(1), [3, 1, 5, 2])
    with pytest.raises(ValueError, match=name):
        pack(trajectories, form=FORM._replace(**change))
