"""ATOD against loops, its two limits, and what it reports."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atod_jax.algorithms import atod, grpo, opd, sod
from atod_jax.algorithms.base import Step
from atod_jax.core.advantages import RewardConfig
from atod_jax.core.schedules import AnnealConfig, CurriculumConfig
from atod_jax.core.tdur import TdurConfig

ALGORITHM = atod.ALGORITHM
ONLY_REWARD = atod.Config(anneal=AnnealConfig(kind="constant", kappa_start=0.0))
ONLY_TEACHER = atod.Config(anneal=AnnealConfig(kind="constant", rho_start=0.0), weighting="uniform")
compiled = {m: jax.jit(m.signal, static_argnums=0) for m in (atod, grpo, opd, sod)}


def signal(cfg, *step, module=atod):
    return compiled[module](cfg, Step(*step))


def weights_of(cfg, batch, student, teacher):
    return np.asarray(atod.turn_weights(cfg, Step(batch, student, teacher, 0)))


def annealed(cfg, **options):
    return dataclasses.replace(cfg, anneal=dataclasses.replace(cfg.anneal, **options))


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("step", [0, 39, 79, 500])
@pytest.mark.parametrize("seed", range(2))
def test_released_settings_agree_with_loops(seed, step, jit):
    batch, student, teacher = oracles.ragged_batch(seed)
    fn = compiled[atod] if jit else atod.signal
    got = fn(atod.Config(), Step(batch, student, teacher, jnp.array(step)))
    kappa, rho = oracles.mix(step + 1)
    expected = oracles.atod_advantage(batch, student, teacher, kappa=kappa, rho=rho, penalty=0.1)
    np.testing.assert_allclose(got.advantage, expected, rtol=1e-5, atol=1e-5)


def test_paper_settings_agree_with_loops():
    batch, student, teacher = oracles.ragged_batch(7, longest=3)
    got = signal(atod.preset("paper"), batch, student, teacher, jnp.array(9))
    kappa, rho = oracles.mix(10)
    expected = oracles.atod_advantage(
        batch,
        student,
        teacher,
        kappa=kappa,
        rho=rho,
        penalty=0.0,
        statistics="trajectories",
        min_turns=1,
        min_divergence=0.0,
    )
    np.testing.assert_allclose(got.advantage, expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_without_the_teacher_term_it_is_grpo_bit_for_bit(seed):
    batch, student, teacher = oracles.ragged_batch(seed)
    got = signal(ONLY_REWARD, batch, student, teacher, jnp.array(3))
    expected = signal(grpo.Config(), batch, student, None, jnp.array(3), module=grpo)
    np.testing.assert_array_equal(got.advantage, expected.advantage)
    np.testing.assert_array_equal(got.old_logp, expected.old_logp)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_without_the_reward_term_it_is_opd_bit_for_bit(seed):
    batch, student, teacher = oracles.ragged_batch(seed)
    got = signal(ONLY_TEACHER, batch, student, teacher, jnp.array(3))
    expected = signal(opd.Config(), batch, student, teacher, jnp.array(3), module=opd)
    np.testing.assert_array_equal(got.advantage, expected.advantage)


def test_equal_returns_leave_exactly_the_teacher_term():
    batch, student, teacher = oracles.ragged_batch(2)
    valid = jnp.ones_like(batch.rows.action_valid)
    batch = batch.replace(
        rows=batch.rows.replace(action_valid=valid), returns=jnp.full_like(batch.returns, 9.9)
    )
    got = signal(atod.Config(), batch, student, teacher, jnp.array(0))
    assert got.diagnostics["rl/abs_mean"].value() == 0.0
    assert got.diagnostics["rollout/mixed_groups"].value() == 0.0
    no_reward = annealed(atod.Config(), rho_start=0.0, rho_end=0.0)
    expected = signal(no_reward, batch, student, teacher, jnp.array(0))
    np.testing.assert_array_equal(got.advantage, expected.advantage)


def test_with_the_weights_of_sod_and_no_annealing_it_is_sod():
    batch, student, teacher = oracles.ragged_batch(3)
    cfg = atod.Config(weighting="sod", anneal=AnnealConfig(kind="constant"))
    got = signal(cfg, batch, student, teacher, jnp.array(7))
    expected = signal(sod.Config(), batch, student, teacher, jnp.array(7), module=sod)
    np.testing.assert_allclose(got.advantage, expected.advantage, rtol=1e-5, atol=1e-6)


def test_weights_touch_only_the_teacher_term():
    batch, student, teacher = oracles.ragged_batch(1)
    uniform = atod.Config(weighting="uniform")
    zero = jnp.array(0)
    weight = weights_of(atod.Config(), batch, student, teacher)
    weighted = signal(atod.Config(), batch, student, teacher, zero).advantage
    plain = signal(uniform, batch, student, teacher, zero).advantage
    no_teacher = annealed(uniform, kappa_start=0.0, kappa_end=0.0)
    reward = signal(no_teacher, batch, student, teacher, zero).advantage
    expected = weight[:, None] * np.asarray(plain - reward)
    np.testing.assert_allclose(weighted - reward, expected, rtol=1e-4, atol=1e-5)


def test_streams_are_zero_off_the_mask_and_carry_no_supervised_term():
    batch, student, teacher = oracles.ragged_batch(5)
    got = signal(atod.Config(), batch, student, teacher, jnp.array(0))
    assert not np.any(np.asarray(got.advantage)[~np.asarray(batch.rows.action_mask)])
    assert got.ce_weight is None
    np.testing.assert_array_equal(got.old_logp, student.logp)


def test_diagnostics_agree_with_numpy():
    batch, student, teacher = oracles.ragged_batch(6)
    got = signal(atod.Config(), batch, student, teacher, jnp.array(0))
    values = {k: v.value() for k, v in got.diagnostics.items()}
    rows, mask = batch.rows, np.asarray(batch.rows.action_mask)
    real = np.asarray(rows.traj) < len(batch.returns)
    gap = np.asarray(student.logp - teacher.logp)
    weight = weights_of(atod.Config(), batch, student, teacher)[real]
    returns = np.asarray(batch.returns).reshape(2, 4)
    expected = {
        "mix/kappa": 0.98875,
        "mix/rho": 1.0125,
        "kl/token": gap[mask].mean(),
        "kl/verb": gap[:, 0][mask[:, 0]].mean(),
        "kl/argument": gap[:, 1:][mask[:, 1:]].mean(),
        "student/entropy": np.asarray(student.entropy)[mask].mean(),
        "student/sampler_gap": np.abs(np.asarray(rows.sampler_logp - student.logp))[mask].mean(),
        "rollout/mixed_groups": (returns.min(1) < returns.max(1)).mean(),
        "turn_weight/mean": weight.mean(),
        "turn_weight/min": weight.min(),
        "turn_weight/max": weight.max(),
    }
    assert set(values) == {*expected, "opd/abs_mean", "rl/abs_mean"}
    for name, value in expected.items():
        np.testing.assert_allclose(values[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_teacher_is_needed_until_kappa_is_zero():
    fading = atod.Config(anneal=AnnealConfig(kappa_end=0.0, steps=10))
    assert [atod.needs_teacher(fading, s) for s in (0, 8, 9, 50)] == [True, True, False, False]
    assert atod.needs_teacher(atod.Config(), 10_000)
    assert not atod.needs_teacher(ONLY_REWARD, 0)
    batch, student, teacher = oracles.ragged_batch(0)
    late = jnp.array(9)
    without = signal(fading, batch, student, None, late).advantage
    np.testing.assert_array_equal(without, signal(fading, batch, student, teacher, late).advantage)


def test_a_missing_teacher_is_an_error():
    batch, student, _ = oracles.ragged_batch(0)
    with pytest.raises(ValueError, match="teacher=None"):
        atod.signal(atod.Config(), Step(batch, student, None, jnp.array(0)))


@pytest.mark.parametrize(
    ("option", "value"),
    [("weighting", "best"), ("token_signal", "full"), ("rtg_gamma", 1.5), ("token_quantile", -0.1)],
)
def test_bad_options_are_named(option, value):
    with pytest.raises(ValueError, match=f"{option}={value!r}"):
        atod.Config(**{option: value})


def test_presets_differ_where_paper_and_code_do():
    paper = atod.Config(
        tdur=TdurConfig(min_turns=1, min_divergence=0.0),
        reward=RewardConfig(statistics="trajectories", invalid_penalty=0.0),
    )
    assert (atod.preset("released"), atod.preset("paper")) == (atod.Config(), paper)


def test_weights_per_token_are_shown_as_their_mean_per_turn():
    batch, student, teacher = oracles.ragged_batch(3)
    cfg = atod.Config(weighting="token")
    step = Step(batch, student, teacher, 0)
    per_token, mask = np.asarray(atod.token_weights(cfg, step)), np.asarray(batch.rows.action_mask)
    expected = [w[m].mean() if m.any() else 0.0 for w, m in zip(per_token, mask, strict=True)]
    np.testing.assert_allclose(atod.turn_weights(cfg, step), expected, rtol=1e-6)


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match="fast"):
        atod.preset("fast")


# ------------------------------------------------------------------------------ further options


def test_return_to_go_replaces_the_gap_but_not_the_weights():
    batch, student, teacher = oracles.ragged_batch(3)
    cfg = dataclasses.replace(ONLY_TEACHER, weighting="tdur", token_signal="return_to_go")
    got = np.asarray(signal(cfg, batch, student, teacher, jnp.array(0)).advantage)
    mask, gap = (np.asarray(x) for x in (batch.rows.action_mask, teacher.logp - student.logp))
    weight = weights_of(cfg, batch, student, teacher)
    for n, t in zip(*np.nonzero(mask)):
        later = [u for u in range(t, mask.shape[1]) if mask[n, u]]
        total = sum(0.99 ** (u - t) * gap[n, u] for u in later)
        length = max(sum(0.99 ** (u - t) for u in later), 1.0)
        np.testing.assert_allclose(got[n, t], weight[n] * total / length, rtol=1e-4, atol=1e-5)


def test_the_curriculum_dampens_late_turns_of_the_teacher_term_only():
    batch, student, teacher = oracles.ragged_batch(4)
    plain = atod.Config(weighting="uniform")
    curved = dataclasses.replace(
        plain, curriculum=CurriculumConfig(enabled=True, updates_per_turn=6.0)
    )
    a, b = (signal(c, batch, student, teacher, jnp.array(5)).advantage for c in (plain, curved))
    turn = np.asarray(batch.rows.turn, np.float64)
    weight = np.clip(1 / (1 + np.exp(-(1 + 6 / 6 - turn + 0.5))), 0.05, 1.0)
    kappa, _ = oracles.mix(6)
    gap = np.where(batch.rows.action_mask, np.asarray(teacher.logp - student.logp), 0.0)
    np.testing.assert_allclose(
        np.asarray(a - b), kappa * (1 - weight)[:, None] * gap, rtol=1e-4, atol=1e-5
    )


def test_exact_moves_the_weighted_term_into_the_loss():
    batch, student, teacher = oracles.ragged_batch(5)
    cfg = atod.Config(token_signal="exact")
    got = signal(cfg, batch, student, teacher, jnp.array(9))
    weight = weights_of(cfg, batch, student, teacher)
    kappa, _ = oracles.mix(10)
    mask = np.asarray(batch.rows.action_mask)
    expected = np.where(mask, kappa * weight[:, None], 0.0)
    np.testing.assert_allclose(got.kl_weight, expected, rtol=1e-6)
    no_teacher = annealed(cfg, kappa_start=0.0, kappa_end=0.0)
    reward = signal(no_teacher, batch, student, teacher, jnp.array(9)).advantage
    np.testing.assert_array_equal(got.advantage, reward)
    assert ALGORITHM.teacher(cfg).exact_kl
    assert not ALGORITHM.teacher(atod.Config()).exact_kl


@pytest.mark.parametrize(("scale", "progress"), [(4.0, 0.0), (0.25, 0.75)])
def test_the_adaptive_schedule_follows_the_gap_of_the_batch(scale, progress):
    batch, student, teacher = oracles.ragged_batch(6)
    mask = np.asarray(batch.rows.action_mask)
    distance = np.abs(np.asarray(teacher.logp - student.logp))[mask].mean()
    cfg = atod.Config(anneal=AnnealConfig(kind="adaptive", gap=float(distance / scale)))
    got = signal(cfg, batch, student, teacher, jnp.array(70)).diagnostics
    np.testing.assert_allclose(got["mix/kappa"].value(), 1 - 0.9 * progress, rtol=1e-5)
    np.testing.assert_allclose(got["mix/rho"].value(), 1 + progress, rtol=1e-5)
    assert atod.needs_teacher(cfg, 10_000)


@pytest.mark.parametrize("name", ["extra turns", "extra trajectory"])
def test_other_trajectories_do_not_change_the_weights_of_one(name):
    """More turns of others may move the group statistics, never T-DUR's weights."""
    batch, student, teacher = oracles.ragged_batch(8)
    rows = batch.rows
    table = weights_of(atod.Config(), batch, student, teacher)
    padding = np.flatnonzero(np.asarray(rows.traj) == 8)[:3]
    new = 7 if name == "extra turns" else 5
    changed = batch.replace(
        rows=rows.replace(
            traj=rows.traj.at[padding].set(new), action_mask=rows.action_mask.at[padding].set(True)
        )
    )
    after = weights_of(atod.Config(), changed, student, teacher)
    others = ~np.isin(np.asarray(changed.rows.traj), [new, 8])
    np.testing.assert_array_equal(after[others], table[others])


@pytest.mark.parametrize("cfg", [atod.Config(), atod.preset("paper")], ids=["released", "paper"])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_row_order_changes_nothing(cfg, seed):
    batch, student, teacher = oracles.ragged_batch(seed)
    order = np.random.default_rng(seed).permutation(64)
    moved = batch.replace(rows=oracles.permuted(batch.rows, order))
    got = signal(
        cfg, moved, *(oracles.permuted(x, order) for x in (student, teacher)), jnp.array(1)
    )
    want = signal(cfg, batch, student, teacher, jnp.array(1)).advantage
    # 1e-4: float32 sums in another order, divided by the standard deviation of a group
    np.testing.assert_allclose(got.advantage, np.asarray(want)[order], rtol=1e-4, atol=1e-4)
