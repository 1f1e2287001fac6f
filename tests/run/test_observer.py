"""What a run shows of itself: the turn table, room at the head, teacher prompts on devices."""

import dataclasses

import jax
import numpy as np
import pytest

from atod_jax.records import StopReason, Task, Trajectory, Turn
from atod_jax.run import assembly
from atod_jax.run.layouts import layouts_of
from atod_jax.run.observer import TurnTable, head_room, pack
from configs import household


@pytest.fixture(scope="module")
def cfg():
    c = household.get_config("smoke")
    c.packing.minibatch_rows, c.packing.micro_rows = 16, 8
    return c


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


def test_the_turn_table_lines_up_with_the_turns(cfg, mesh):
    with jax.set_mesh(mesh):
        student = assembly.load_student(cfg, layouts_of(cfg))
        teacher = assembly.load_teacher(cfg, student, layouts_of(cfg))
        table = TurnTable(cfg, mesh, student, teacher)
        whole, half = table(
            student.params, [make_trajectory(4), make_trajectory(5, seed=1, replayed=2)]
        )
    assert {len(v) for v in whole.values()} == {4}
    assert np.isfinite(list(whole.values())).all()
    assert np.isnan([v[:2] for v in half.values()]).all()
    assert np.isfinite([v[2:] for v in half.values()]).all()
    assert max(whole["w"]) <= 1


def test_room_depends_on_the_batch_alone(cfg, mesh):
    def room(turns):
        rows = pack(cfg, mesh, [make_trajectory(turns)], 0, 0).rows
        return head_room(cfg, mesh, np.asarray(rows.action_mask))

    places = cfg.packing.micro_rows // 8 * cfg.sampling.max_new_tokens  # on each of eight devices
    assert places >= room(12) >= 3
    assert room(12) == room(12)


def test_teacher_prompts_reach_the_devices_in_a_bucket_of_their_own(cfg, mesh):
    trajectory = make_trajectory(3)
    told = tuple(
        dataclasses.replace(t, teacher_prompt=np.arange(5, 65, dtype=np.int32))
        for t in trajectory.turns
    )
    batch = pack(cfg, mesh, [dataclasses.replace(trajectory, turns=told)], 0, 0)
    assert batch.rows.prompt.shape[1] == 52
    assert batch.teacher_prompt.shape[1] == 72
    assert sorted(np.asarray(batch.teacher_prompt_length)) == [0] * 13 + [60] * 3
    assert batch.teacher_prompt.sharding == batch.rows.prompt.sharding
