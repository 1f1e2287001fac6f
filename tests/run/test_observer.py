"""Batches on devices: capacity at the head, teacher prompts; what is said of episodes."""

import dataclasses

import jax
import numpy as np
import pytest
from runs import load_models, typed

from atod_jax.records import CUT, StopReason, Task, Trace, Trajectory, Turn
from atod_jax.run.batch import pack
from atod_jax.run.iteration_metrics import Judge, foreign_wording, no_signal, rollout_scalars
from atod_jax.run.layouts import layouts_of
from atod_jax.run.observer import due, to_come
from atod_jax.run.parts import algorithm
from atod_jax.run.traces import CHOICES, DISAGREE, Tracer, to_show
from configs import household


@pytest.fixture(scope="module")
def config():
    c = household.get_config("smoke")
    c.packing.minibatch_rows, c.packing.micro_rows = 16, 8
    return c


@pytest.fixture(scope="module")
def cfg(config):
    return typed(config)


@pytest.fixture(scope="module")
def mesh(cfg):
    return layouts_of(cfg).student.mesh


def make_trajectory(turns=4, *, seed=0, replayed=0):
    """Random ids of the household vocabulary; the first turns were played for the student."""
    rng = np.random.default_rng(seed)

    def turn(k):
        own = k >= replayed
        action = rng.integers(5, 100, 3 * own).astype(np.int32)
        return Turn(
            prompt=rng.integers(5, 100, 20 * own).astype(np.int32), action=action,
            logp=np.zeros(len(action), np.float32), observation=f"room {k}", response="look",
            command="look", valid=True, reward=0.0, replayed=not own,
        )  # fmt: skip

    return Trajectory(
        task=Task(id="t", kind="k", payload=None), group=0,
        turns=tuple(turn(k) for k in range(turns)), success=False, stop=StopReason.max_turns,
    )  # fmt: skip


def test_traces_line_up_with_turns_and_tokens(config, cfg, mesh):
    own, half = make_trajectory(4), make_trajectory(5, seed=1, replayed=2)
    nothing = dataclasses.replace(make_trajectory(1), turns=())
    with jax.set_mesh(mesh):
        _, student, teacher = load_models(config)
        tracer = Tracer(cfg, mesh, student=student, teacher=teacher, algorithm=algorithm(cfg))
        whole, part = tracer(student.params, [own, half])
        assert tracer(student.params, [nothing, nothing]) == [Trace(), Trace()]
    assert {len(v) for v in whole.turns.values()} == {4}
    assert np.isfinite(list(whole.turns.values())).all()
    assert np.isnan([v[:2] for v in part.turns.values()]).all()
    assert np.isfinite([v[2:] for v in part.turns.values()]).all()
    assert max(whole.turns["w"]) <= 1
    assert set(whole.tokens) == {"student", "teacher", "entropy"}
    assert [len(x) for x in part.tokens["teacher"]] == [0, 0, 3, 3, 3]
    for trace in (whole, part):
        gaps = [
            np.abs(ours - theirs)
            for ours, theirs in zip(trace.tokens["student"], trace.tokens["teacher"], strict=True)
        ]
        means = [x.mean() if len(x) else np.nan for x in gaps]
        np.testing.assert_allclose(means, trace.turns["d"], rtol=1e-5)
        asked = [[i.token for i in one] for one in trace.instead]
        assert asked == [list(np.flatnonzero(gap >= DISAGREE)) for gap in gaps]


def test_the_teachers_choice_is_what_it_would_have_said(config, cfg, mesh):
    """Where the student says what the teacher finds likeliest, the two log-probabilities agree."""
    with jax.set_mesh(mesh):
        _, student, teacher = load_models(config)
        tracer = Tracer(cfg, mesh, student=student, teacher=teacher, algorithm=algorithm(cfg))
        (first,) = tracer(student.params, [make_trajectory(1)])
        asked = first.instead[0][0]
        best, logp = asked.choices[0]
        turn = make_trajectory(1).turns[0]
        action = turn.action.copy()
        action[asked.token] = best
        turn = dataclasses.replace(turn, action=action)
        changed = dataclasses.replace(make_trajectory(1), turns=(turn,))
        (second,) = tracer(student.params, [changed])
    assert second.tokens["teacher"][0][asked.token] == pytest.approx(logp, abs=1e-4)
    values = [x for _, x in asked.choices]
    assert values == sorted(values, reverse=True)
    assert len(values) == CHOICES
    assert not {i for i, _ in asked.choices} & set(student.tokens.silent)


@pytest.mark.parametrize("every", [0, 1, 3, 5, 50])
def test_episodes_to_come_are_those_that_will_be_played(cfg, every):
    ev = dataclasses.replace(cfg.eval, every=every, temperatures=(1.0, 0.4), passes=2)
    cfg = dataclasses.replace(cfg, eval=ev, total_steps=10)
    for done in range(11):
        points = sum(due(step, every) for step in range(done, 10)) + (every > 0)
        assert to_come(cfg, done, curve=7, final=5) == 7 * points + 5 * 2 * 2


def test_failures_and_successes_are_shown_in_turn_the_surprising_ones_first():
    won = [False, True, False, False, True]
    episodes = [dataclasses.replace(make_trajectory(1), success=x) for x in won]
    assert to_show(episodes, 3) == [0, 1, 2]
    assert to_show(episodes, 9) == [0, 1, 2, 4, 3]
    assert to_show(episodes, 4, [0.0, 1.0, 5.0, 3.0, 2.0]) == [2, 4, 3, 1]
    assert to_show(episodes, 0) == to_show([], 3) == []


def test_cut_responses_and_shortened_prompts_are_shares_of_the_turns_that_were_played():
    cut, whole = make_trajectory(4), make_trajectory(6, seed=1, replayed=2)
    turns = [dataclasses.replace(turn, problem=CUT) for turn in cut.turns[:2]] + [*cut.turns[2:]]
    cut = dataclasses.replace(cut, turns=tuple(turns))
    lost = [cut.turns[0].prompt, *(turn.prompt for turn in whole.turns[2:])]
    found = rollout_scalars([cut, whole], lambda prompt: any(prompt is p for p in lost))
    assert found["rollout/cut"] == 2 / 8
    assert found["rollout/shortened"] == 5 / 8
    assert found["rollout/rows"] == 8


def pack_all(config, cfg, mesh, trajectories, step=0):
    with jax.set_mesh(mesh):
        _, student, _ = load_models(config)
    return pack(cfg, trajectories, student=student, step=step)


def test_room_is_of_the_batch_alone(config, cfg, mesh):
    def room(turns):
        return pack_all(config, cfg, mesh, [make_trajectory(turns)]).room(mesh)

    # a line of four turns on each of eight devices: too few places for more than one size
    assert room(12) == room(1) == (4 * cfg.sampling.max_new_tokens,) * 2


def test_the_host_knows_what_the_devices_hold(config, cfg, mesh):
    packed = pack_all(config, cfg, mesh, [make_trajectory(4), make_trajectory(3, seed=1)], step=5)
    rows = packed.batch.rows
    np.testing.assert_array_equal(packed.mask, rows.action_mask)
    np.testing.assert_array_equal(packed.traj, rows.traj)
    np.testing.assert_array_equal(packed.turn, rows.turn)


def test_lines_hold_the_longest_turn_whoever_reads_them(config, cfg, mesh):
    trajectory = make_trajectory(3)
    told = tuple(
        dataclasses.replace(t, teacher_prompt=np.arange(5, 65, dtype=np.int32))
        for t in trajectory.turns
    )
    batch = pack_all(config, cfg, mesh, [dataclasses.replace(trajectory, turns=told)]).batch
    ours, theirs = batch.rows.lines, batch.teacher_lines
    columns = cfg.sampling.prompt_buckets[-1] + cfg.sampling.max_new_tokens - 1
    assert ours.tokens.shape[1] == theirs.tokens.shape[1] == columns
    assert sorted(np.unique(theirs.prompt_length)) == [0, 60]
    assert sorted(np.asarray(theirs.prompt_length))[-4:] == [0, 60, 60, 60]
    assert theirs.tokens.sharding == ours.tokens.sharding


@pytest.mark.parametrize(
    ("step", "gap", "told"), [(9, 3.04, True), (9, 0.7, False), (8, 5.0, False), (10, 5.0, False)]
)
def test_a_gap_of_nats_that_does_not_fall_is_told_once(step, gap, told):
    text = foreign_wording(step, {"kl/token": gap})
    assert bool(text) == told
    assert ("3.0 nats" in text) == told


def step(norm, **more):
    return {"update/grad_norm": norm} | {name.replace("_", "/", 1): x for name, x in more.items()}


@pytest.mark.parametrize(
    ("steps", "times"),
    [
        ([step(0.0)] * 25, 1),
        ([step(0.0)] * 9 + [step(1.0)] + [step(0.0)] * 9, 0),
        ([step(0.3)] * 25, 0),
        # an entropy bonus alone has a gradient
        ([step(1e-3, rl_abs_mean=0.0)] * 25, 1),
        ([step(1e-3, rl_abs_mean=0.0)] * 9 + [step(1.0, rl_abs_mean=0.1)] * 9, 0),
        # the teacher speaks where no reward does
        ([step(1.0, rl_abs_mean=0.0, kl_token=0.5)] * 25, 0),
    ],
)
def test_steps_without_a_signal_are_told_once(steps, times):
    judge = Judge()
    said = [judge(number, scalars) for number, scalars in enumerate(steps)]
    assert [text for (text,) in filter(None, said)] == [no_signal(10)] * times


def test_a_run_without_a_teacher_has_no_gap():
    assert foreign_wording(9, {"loss": 1.0}) == ""
