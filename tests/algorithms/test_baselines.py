"""SOD, TCOD, SDAR and gated distillation against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from atod_jax.algorithms import base, grpo, opd, opd_gated, sdar, sod, tcod

ZERO = jnp.array(0)


def reward_of(batch):
    traj = np.asarray(batch.rows.traj)
    scores = oracles.row_scores(batch.returns, traj, batch.rows.action_valid, penalty=0.1)
    return oracles.group_relative(scores, traj, np.asarray(batch.group))


def on_mask(batch, per_row, per_token):
    return np.where(batch.rows.action_mask, per_row[:, None] * np.asarray(per_token), 0.0)


@pytest.mark.parametrize("delta", [0.2, 5.0])
@pytest.mark.parametrize("seed", range(3))
def test_sod_attenuates_turns_where_the_teacher_has_drifted(seed, delta):
    batch, student, teacher = oracles.ragged_batch(seed)
    rows = batch.rows
    got = jax.jit(sod.signal, static_argnums=0)(
        sod.Config(delta=delta, coef=2.0), batch, student, teacher, ZERO
    )
    d, _ = oracles.turn_signals(
        np.asarray(student.logp), np.asarray(teacher.logp), np.asarray(rows.action_mask)
    )
    weight = oracles.sod_weights(
        d, np.asarray(rows.traj), np.asarray(rows.turn), num_traj=8, delta=delta
    )
    expected = on_mask(batch, reward_of(batch), 1.0)
    expected += on_mask(batch, 2.0 * weight, teacher.logp - student.logp)
    np.testing.assert_allclose(got.advantage, expected, rtol=2e-4, atol=2e-5)


def test_weights_of_both_signs_exist():
    """Turns 0..2 with rising disagreement: SOD trusts the last least."""
    weight = sod.stepwise_weights(
        jnp.array([0.1, 0.2, 0.4]), jnp.zeros(3, jnp.int32), jnp.arange(3), num_traj=1,
        delta=0.2, eps=0.0,
    )  # fmt: skip
    np.testing.assert_allclose(weight, [1.0, 0.5, 0.25], rtol=1e-6)


def test_the_gate_listens_to_the_teacher_where_rewards_are_bad():
    batch, student, teacher = oracles.ragged_batch(0)
    cfg = opd_gated.Config(gamma=2.0, beta_min=0.1, beta_max=0.5)
    got = opd_gated.signal(cfg, batch, student, teacher, ZERO)
    reward = reward_of(batch)
    beta = 0.1 + 0.4 / (1 + np.exp(2.0 * reward))
    expected = on_mask(batch, reward, 1.0) + on_mask(batch, beta, teacher.logp - student.logp)
    np.testing.assert_allclose(got.advantage, expected, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------- TCOD


def test_front_to_back_grows_to_the_whole_episode():
    plans = [tcod.rollout_plan(tcod.Config(), step, 4) for step in (0, 4, 5, 11, 100)]
    assert [p.max_turns for p in plans] == [1, 1, 2, 3, 4]
    assert {p.prefix_by for p in plans} == {""}


def test_back_to_front_hands_over_earlier_and_earlier():
    cfg = tcod.Config(direction="back", updates_per_turn=2, prefix_by="teacher")
    plans = [tcod.rollout_plan(cfg, step, 20) for step in (0, 1, 3, 50)]
    assert [p.prefix(6) for p in plans] == [5, 4, 3, 0]
    assert [p.prefix(0) for p in plans] == [0, 0, 0, 0]  # no demonstration: from the start
    assert {(p.max_turns, p.prefix_by) for p in plans} == {(20, "teacher")}


def test_tcod_learns_like_plain_distillation():
    batch, student, teacher = oracles.ragged_batch(1)
    got = tcod.signal(tcod.Config(), batch, student, teacher, ZERO)
    want = opd.signal(opd.Config(), batch, student, teacher, ZERO)
    np.testing.assert_array_equal(got.advantage, want.advantage)


@pytest.mark.parametrize(
    "options", [{"direction": "up"}, {"prefix_by": "me"}, {"updates_per_turn": 0}], ids=str
)
def test_bad_curricula_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        tcod.Config(**options)


# ------------------------------------------------------------------------------------------- SDAR


def test_sdar_is_grpo_and_a_gated_term_from_its_own_teacher():
    batch, student, teacher = oracles.ragged_batch(2)
    got = sdar.signal(sdar.Config(coef=0.3), batch, student, teacher, ZERO)
    want = grpo.signal(grpo.Config(), batch, student, None, ZERO)
    np.testing.assert_array_equal(got.advantage, want.advantage)
    mask = np.asarray(batch.rows.action_mask)
    np.testing.assert_array_equal(got.gate_weight, np.where(mask, np.float32(0.3), 0.0))
    np.testing.assert_array_equal(got.teacher_logp, teacher.logp)
    context = sdar.teacher_context(sdar.Config())
    assert context.self_teacher
    assert context.privileged


# ------------------------------------------------------------------------------------------ hooks


@pytest.mark.parametrize("module", [sod, tcod, sdar, opd_gated])
def test_a_missing_teacher_is_an_error(module):
    batch, student, _ = oracles.ragged_batch(0)
    name = module.__name__.rpartition(".")[2]
    assert module.needs_teacher(module.Config(), 10_000)
    with pytest.raises(ValueError, match=f"{name} has teacher=None"):
        module.signal(module.Config(), batch, student, None, ZERO)


def test_modules_without_a_hook_get_the_default():
    plan = base.hook(grpo, "rollout_plan")(grpo.Config(), 3, 7)
    assert (plan.max_turns, plan.prefix_by, plan.prefix(9)) == (7, "", 0)
    assert base.hook(grpo, "teacher_context")(grpo.Config()) == base.TeacherContext()
    assert base.hook(tcod, "rollout_plan") is tcod.rollout_plan
