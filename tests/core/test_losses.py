"""The surrogate token by token and the objective of a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atod_jax.core.losses import LossConfig, objective, surrogate
from atod_jax.types import Signal, TokenStats

CFG = LossConfig()


def make_signal(advantage, old_logp, *, ce_weight=None, **streams):
    return Signal(
        advantage=advantage,
        ce_weight=ce_weight,
        old_logp=old_logp,
        diagnostics={},
        **streams,
    )


def value_of(logp, mask, signal, cfg=CFG, *, norm=1.0, sampler_logp=None):
    """The objective with equal shares of 1 / norm."""
    stats = TokenStats(logp=logp, entropy=jnp.ones_like(logp))
    share = jnp.full(logp.shape, 1.0 / norm)
    return objective(
        stats, signal, action_mask=mask, share=share, cfg=cfg, sampler_logp=sampler_logp
    )


def random_case(seed, shape=(5, 6)):
    rng = np.random.default_rng(seed)
    old = -rng.exponential(1.0, shape)
    logp = old + rng.normal(0.0, 0.8, shape)
    streams = logp, old, rng.normal(0.0, 2.0, shape)
    mask = np.arange(shape[1]) < rng.integers(0, shape[1] + 1, shape[0])[:, None]
    return [jnp.asarray(x, jnp.float32) for x in streams], jnp.asarray(mask)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),  # on policy: the plain policy gradient
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.4, 0.0),  # clipped above: no further reward for raising it
        (0.5, 2.0, -1.0, -1.0),
        (1.5, -1.0, 1.5, 1.5),
        (0.5, -1.0, 0.8, 0.0),  # clipped below
        (5.0, -1.0, 3.0, 0.0),  # dual clip
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_hand_numbers(ratio, advantage, loss, slope):
    def one(logp):
        zero = jnp.zeros((1, 1))
        streams = {"advantage": zero + advantage, "action_mask": zero == 0}
        return surrogate(jnp.full((1, 1), logp), zero, **streams, cfg=CFG)[0, 0]

    got = jax.value_and_grad(one)(float(np.log(ratio)))
    np.testing.assert_allclose(got, (loss, slope), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("bounds", [(0.2, 0.2, 3.0), (0.1, 0.4, 2.0)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_objective_agrees_with_loops(seed, bounds, jit):
    (logp, old, advantage), mask = random_case(seed)
    low, high, dual = bounds
    cfg = LossConfig(clip_low=low, clip_high=high, dual_clip=dual)

    def loss(x):
        return value_of(x, mask, make_signal(advantage, old), cfg, norm=7.0)[0]

    grad_fn = jax.value_and_grad(loss)
    value, grad = (jax.jit(grad_fn) if jit else grad_fn)(logp)
    total, expected = 0.0, np.zeros(mask.shape)
    for n, t in zip(*np.nonzero(mask)):
        args = float(logp[n, t]), float(old[n, t]), float(advantage[n, t])
        one, expected[n, t] = oracles.surrogate(*args, low=low, high=high, dual=dual)
        total += one
    np.testing.assert_allclose(value, total / 7.0, rtol=1e-5)
    np.testing.assert_allclose(grad, expected / 7.0, rtol=2e-5, atol=1e-6)


def test_gradient_agrees_with_finite_differences():
    (logp, old, advantage), mask = random_case(11)

    def loss(x):
        return float(value_of(x, mask, make_signal(advantage, old))[0])

    grad = jax.grad(lambda x: value_of(x, mask, make_signal(advantage, old))[0])(logp)
    direction = np.random.default_rng(0).normal(size=mask.shape).astype(np.float32)
    step = 1e-3
    slope = (loss(logp + step * direction) - loss(logp - step * direction)) / (2 * step)
    np.testing.assert_allclose(np.sum(grad * direction), slope, rtol=2e-3)


@pytest.mark.parametrize("garbage", [50.0, -1e4, float("inf"), float("nan")])
def test_values_off_the_mask_change_nothing(garbage):
    (logp, old, advantage), mask = random_case(4)

    def run(*streams):
        logp, old, advantage = streams
        grad_fn = jax.value_and_grad(lambda x: value_of(x, mask, make_signal(advantage, old))[0])
        return grad_fn(logp)

    value, grad = run(logp, old, advantage)
    dirty = [jnp.where(mask, x, garbage) for x in (logp, old, advantage)]
    dirty_value, dirty_grad = run(*dirty)
    assert float(value) == float(dirty_value)
    np.testing.assert_array_equal(grad, dirty_grad)
    assert not np.any(np.asarray(grad)[~np.asarray(mask)])


def test_a_huge_ratio_keeps_the_gradient_finite():
    logp, old = jnp.array([[-1.0, -1.0]]), jnp.array([[-200.0, -200.0]])
    advantage, mask = jnp.array([[1.0, -1.0]]), jnp.ones((1, 2), bool)
    value, grad = jax.value_and_grad(lambda x: value_of(x, mask, make_signal(advantage, old))[0])(
        logp
    )
    np.testing.assert_allclose(value, -1.2 + 3.0, rtol=1e-6)
    np.testing.assert_array_equal(grad, [[0.0, 0.0]])


def test_cross_entropy_and_entropy_terms():
    """Two tokens, logp -1 and -3, weights 1 and 2: 7 nats; entropy 1 each at coefficient 0.1."""
    logp, mask = jnp.array([[-1.0, -3.0]]), jnp.ones((1, 2), bool)
    signal = make_signal(jnp.zeros((1, 2)), logp, ce_weight=jnp.array([[1.0, 2.0]]))
    np.testing.assert_allclose(value_of(logp, mask, signal, norm=2.0)[0], 3.5, rtol=1e-6)
    bonus = value_of(logp, mask, signal, LossConfig(entropy_coef=0.1), norm=2.0)[0]
    np.testing.assert_allclose(bonus, 3.4, rtol=1e-6)


def test_metrics_hand_numbers():
    """Ratios 1.5 (A>0: clipped), 5 (A<0: dual clip), 1; one token off."""
    old = jnp.log(jnp.array([[1 / 1.5, 1 / 5.0, 1.0, 1 / 9.0]]))
    mask = jnp.array([[True, True, True, False]])
    signal = make_signal(jnp.array([[1.0, -1.0, 1.0, 1.0]]), old)
    metrics = value_of(jnp.zeros((1, 4)), mask, signal)[1]
    got = {k: v.value() for k, v in metrics.items()}
    np.testing.assert_allclose(got["loss/clip_fraction"], 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(got["loss/clip_fraction_lower"], 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(got["loss/ppo_kl"], -np.log(7.5) / 3, rtol=1e-6)
    assert float(metrics["loss/entropy"].weight) == 3


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), cut=st.sampled_from([1, 2, 3]))
def test_losses_and_metrics_of_pieces_add_up(seed, cut):
    (logp, old, advantage), mask = random_case(seed, shape=(6, 6))
    whole, metrics = value_of(logp, mask, make_signal(advantage, old))
    total, added = 0.0, None
    for piece in (slice(0, 2 * cut), slice(2 * cut, None)):
        part = make_signal(advantage[piece], old[piece])
        value, some = value_of(logp[piece], mask[piece], part)
        total += float(value)
        added = some if added is None else {k: added[k] + some[k] for k in added}
    np.testing.assert_allclose(total, whole, rtol=1e-5, atol=1e-6)
    for name, mean in metrics.items():
        np.testing.assert_allclose(added[name].total, mean.total, rtol=1e-5, atol=1e-5)
        assert float(added[name].weight) == float(mean.weight)


@pytest.mark.parametrize("seed", range(3))
def test_gspo_uses_one_ratio_per_row(seed):
    """The clip looks at exp(mean log-ratio) of the row; the gradient stays the token's."""
    (logp, old, advantage), mask = random_case(seed)
    advantage = jnp.broadcast_to(advantage[:, :1], advantage.shape)
    cfg = LossConfig(surrogate="gspo")
    value, grad = jax.value_and_grad(
        lambda x: value_of(x, mask, make_signal(advantage, old), cfg)[0]
    )(logp)
    total, expected = 0.0, np.zeros(mask.shape)
    for n in range(len(mask)):
        tokens = np.flatnonzero(mask[n])
        if len(tokens):
            mean = float(np.mean(np.asarray(logp - old, np.float64)[n, tokens]))
            one, slope = oracles.surrogate(mean, 0.0, float(advantage[n, 0]))
            total += one * len(tokens)
            expected[n, tokens] = slope
    np.testing.assert_allclose(value, total, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(grad, expected, rtol=1e-4, atol=1e-5)


def test_cispo_keeps_the_gradient_of_clipped_tokens():
    """Ratio 2 is clipped to 1.2, ratio 1.1 is not; the gradient is -clip(ratio) A."""
    logp, mask = jnp.array([[-1.0, -2.0]]), jnp.ones((1, 2), bool)
    signal = make_signal(jnp.array([[1.0, -1.0]]), logp - jnp.log(jnp.array([[2.0, 1.1]])))
    cfg = LossConfig(surrogate="cispo")
    value, grad = jax.value_and_grad(lambda x: value_of(x, mask, signal, cfg)[0])(logp)
    np.testing.assert_allclose(value, 1.2 * 1.0 - 1.1 * 2.0, rtol=1e-6)
    np.testing.assert_allclose(grad, [[-1.2, 1.1]], rtol=1e-6)


@pytest.mark.parametrize("surrogate_name", ["ppo", "gspo", "cispo"])
def test_on_policy_every_surrogate_is_the_policy_gradient(surrogate_name):
    (logp, _, advantage), mask = random_case(7)
    cfg = LossConfig(surrogate=surrogate_name)
    signal = make_signal(advantage, logp)
    grad = jax.grad(lambda x: value_of(x, mask, signal, cfg)[0])(logp)
    np.testing.assert_allclose(grad, np.where(mask, -advantage, 0.0), rtol=1e-6)


def test_importance_weights_are_capped_constants():
    """p_trainer / p_sampler of 1/2 stays, 4 is cut to 2; no gradient flows through them."""
    logp, mask = jnp.array([[-1.0, -1.0]]), jnp.ones((1, 2), bool)
    sampler = logp - jnp.log(jnp.array([[0.5, 4.0]]))
    signal, cfg = make_signal(jnp.array([[1.0, 1.0]]), logp), LossConfig(tis_cap=2.0)
    value, grad = jax.value_and_grad(
        lambda x: value_of(x, mask, signal, cfg, sampler_logp=sampler)[0]
    )(logp)
    np.testing.assert_allclose(value, -2.5, rtol=1e-6)
    np.testing.assert_allclose(grad, [[-0.5, -2.0]], rtol=1e-6)
    plain = value_of(logp, mask, signal, sampler_logp=sampler)[0]
    np.testing.assert_allclose(plain, -2.0, rtol=1e-6)


def test_exact_kl_gate_and_k3_enter_with_their_weights():
    """KL 0.5 at weight 2; gap +1 gated; reference one nat above at coefficient 0.1."""
    logp, mask = jnp.array([[-1.0]]), jnp.ones((1, 1), bool)
    one = jnp.ones((1, 1))
    signal = make_signal(
        0 * one, logp, kl_weight=2 * one, gate_weight=3 * one, teacher_logp=logp + 1,
        reference_logp=logp + 1,
    )  # fmt: skip
    stats = TokenStats(logp=logp, entropy=0 * one, reverse_kl=0.5 * one)
    cfg = LossConfig(kl_coef=0.1, gate_beta=2.0)
    value, metrics = objective(stats, signal, action_mask=mask, share=one, cfg=cfg)
    gate = 1 / (1 + np.exp(-2.0))
    np.testing.assert_allclose(value, 2 * 0.5 + 3 * gate + 0.1 * (np.e - 2), rtol=1e-5)
    assert metrics["loss/teacher_kl"].value() == 0.5
    np.testing.assert_allclose(metrics["loss/gate"].value(), gate, rtol=1e-6)


@pytest.mark.parametrize(
    ("streams", "options", "message"),
    [
        ({"kl_weight": 1.0}, {}, "kl_weight needs a stream"),
        ({"gate_weight": 1.0}, {}, "gate_weight needs a stream"),
        ({}, {"kl_coef": 0.1}, "kl_coef needs a stream"),
        ({}, {"tis_cap": 2.0}, "tis_cap needs a stream"),
    ],
)
def test_a_missing_stream_is_named(streams, options, message):
    (logp, old, advantage), mask = random_case(0)
    streams = {k: jnp.full(mask.shape, v) for k, v in streams.items()}
    with pytest.raises(ValueError, match=message):
        value_of(logp, mask, make_signal(advantage, old, **streams), LossConfig(**options))


@pytest.mark.parametrize(
    "options",
    [
        {"dual_clip": 1.1}, {"dual_clip": 1e9}, {"clip_low": 2.0}, {"surrogate": "trpo"},
        {"aggregation": "mean"}, {"tis_cap": -1.0}, {"kl_coef": -0.1}, {"entropy_coef": -0.1},
        {"gate_beta": float("nan")},
    ],
    ids=str,
)  # fmt: skip
def test_bad_options_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        LossConfig(**options)
