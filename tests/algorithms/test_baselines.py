"""SOD, TCOD, SDAR and gated distillation against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from atod_jax.algorithms import atod, base, grpo, opd, opd_gated, sdar, sft, sod, tcod
from atod_jax.algorithms.base import Step
from atod_jax.options.tree import leaves, parse, to_plain, unflatten

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
        sod.Config(delta=delta, coef=2.0), Step(batch, student, teacher, ZERO)
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
        jnp.array([0.1, 0.2, 0.4]), jnp.zeros(3, jnp.int32), turn=jnp.arange(3), num_traj=1,
        delta=0.2, eps=0.0,
    )  # fmt: skip
    np.testing.assert_allclose(weight, [1.0, 0.5, 0.25], rtol=1e-6)


def test_the_gate_listens_to_the_teacher_where_rewards_are_bad():
    batch, student, teacher = oracles.ragged_batch(0)
    cfg = opd_gated.Config(gamma=2.0, beta_min=0.1, beta_max=0.5)
    got = opd_gated.signal(cfg, Step(batch, student, teacher, ZERO))
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
    got = tcod.signal(tcod.Config(), Step(batch, student, teacher, ZERO))
    want = opd.signal(opd.Config(), Step(batch, student, teacher, ZERO))
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
    got = sdar.signal(sdar.Config(coef=0.3), Step(batch, student, teacher, ZERO))
    want = grpo.signal(grpo.Config(), Step(batch, student, None, ZERO))
    np.testing.assert_array_equal(got.advantage, want.advantage)
    mask = np.asarray(batch.rows.action_mask)
    np.testing.assert_array_equal(got.gate_weight, np.where(mask, np.float32(0.3), 0.0))
    np.testing.assert_array_equal(got.teacher_logp, teacher.logp)
    context = sdar.ALGORITHM.teacher(sdar.Config())
    assert context.self_teacher
    assert context.privileged


# --------------------------------------------------------------------------------------- contract


@pytest.mark.parametrize("module", [opd, sod, tcod, sdar, opd_gated])
def test_a_missing_teacher_is_an_error(module):
    batch, student, _ = oracles.ragged_batch(0)
    algorithm = module.ALGORITHM
    assert algorithm.needs_teacher(algorithm.Config(), 10_000)
    with pytest.raises(ValueError, match="teacher=None: the algorithm distils"):
        algorithm.signal(algorithm.Config(), Step(batch, student, None, ZERO))


def test_an_algorithm_that_says_nothing_plays_whole_episodes_with_a_frozen_teacher():
    algorithm = grpo.ALGORITHM
    plan = algorithm.rollout_plan(grpo.Config(), 3, 7)
    assert (plan.max_turns, plan.prefix_by, plan.prefix(9)) == (7, "", 0)
    assert algorithm.teacher(grpo.Config()) == base.TeacherContext()
    assert not algorithm.needs_teacher(grpo.Config(), 0)
    assert tcod.ALGORITHM.rollout_plan is tcod.rollout_plan


def test_only_supervised_training_learns_from_the_expert():
    modules = (grpo, opd, opd_gated, sdar, sft, sod, tcod)
    assert [m for m in modules if m.ALGORITHM.supervised] == [sft]


def test_turn_weights_are_those_of_the_teachers_signal():
    batch, student, teacher = oracles.ragged_batch(4)
    step = Step(batch, student, teacher, ZERO)
    for module in (opd, tcod):
        assert np.all(module.ALGORITHM.turn_weights(module.Config(), step) == 1)
    for module in (grpo, sdar, sft):
        assert module.ALGORITHM.turn_weights is None
    for module in (sod, opd_gated):
        algorithm, cfg = module.ALGORITHM, module.Config(coef=1.0)
        reward = grpo.signal(grpo.Config(), Step(batch, student, None, ZERO)).advantage
        gap = base.log_gap(step)
        expected = reward + algorithm.turn_weights(cfg, step)[:, None] * gap
        got = algorithm.signal(cfg, step)
        np.testing.assert_allclose(got.advantage, expected, rtol=1e-5, atol=1e-5)
        real = np.asarray(batch.rows.traj) < 8
        shown = np.asarray(algorithm.turn_weights(cfg, step))[real]
        assert got.diagnostics["turn_weight/max"].value() == pytest.approx(shown.max(), rel=1e-6)


@pytest.mark.parametrize("module", [atod, grpo, opd, opd_gated, sdar, sft, sod, tcod])
def test_every_option_says_what_it_means_and_survives_a_round_trip(module):
    cfg = module.ALGORITHM.Config()
    assert parse(cfg, to_plain(cfg)) == cfg
    hash(cfg)  # a static argument of the compiled signal
    for leaf in leaves(cfg):
        assert leaf.about.meaning, leaf.path
        if leaf.type is float and leaf.about.checks:
            with pytest.raises(ValueError, match=f"{leaf.path}=nan"):
                parse(cfg, unflatten({leaf.path: float("nan")}))
            assert not leaf.about.checks[0].holds(float("nan"))  # nor where nothing parses
