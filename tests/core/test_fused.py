"""The fused head against full logits: values, gradients, devices, and what it must not use."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from full_logits import (
    E,
    N,
    R,
    V,
    assert_close,
    case,
    full_logits,
    reference,
    value_and_gradients,
    weighted_sum,
)
from jax.extend import core as jax_core
from jax.sharding import NamedSharding, PartitionSpec

from atod_jax.core.blocks import block_tokens, tile_rows
from atod_jax.core.fused import (
    HeadConfig,
    TeacherHead,
    head_loss,
    support_bias,
    token_stats,
)
from atod_jax.core.logits import Logits, in_one_sweep, in_two_sweeps
from atod_jax.core.losses import LossConfig, objective
from atod_jax.sharding import make_mesh
from atod_jax.types import Signal

CUTS = {
    "whole": HeadConfig(),
    "blocks": HeadConfig(block=4),
    "uneven blocks": HeadConfig(block=7),
    "tiles": HeadConfig(tile=13),
    "blocks and tiles": HeadConfig(block=4, tile=3),
}


@functools.cache
def usual_reference(*, with_teacher):
    *args, teacher = case()
    cfg = HeadConfig(temperature=0.7, vocab=35, forbidden=(0, 2))
    return reference(*args, teacher if with_teacher else None, cfg=cfg)


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("with_teacher", [False, True], ids=["alone", "teacher"])
@pytest.mark.parametrize("capacity", [None, 17])
def test_values_and_gradients_agree_with_full_logits(cut, with_teacher, capacity):
    *args, teacher = case()
    cfg = dataclasses.replace(cut, temperature=0.7, vocab=35, forbidden=(0, 2))
    teacher = teacher if with_teacher else None
    got = value_and_gradients(*args, teacher, cfg=cfg, capacity=capacity)
    assert_close(got, usual_reference(with_teacher=with_teacher))


def test_a_loss_of_finished_statistics_has_the_same_gradients():
    cfg = HeadConfig(temperature=0.7, vocab=35, forbidden=(0, 2), block=4)
    got = value_and_gradients(*case(), cfg=cfg, capacity=17, early=False)
    assert_close(got, usual_reference(with_teacher=True))


def test_one_sweep_says_what_two_say():
    """What runs on an accelerator, and what runs here."""
    hidden, head, action, _, teacher = case(7)
    z, y = (
        jnp.einsum("nrd,vd->nrv", *x).reshape(-1, V) * scale
        for x, scale in (((hidden, head), 3.0), (teacher, 5.0))
    )
    z = z + support_bias(V, vocab=35, forbidden=(0,))[None]
    hit = action.reshape(-1, 1) == jnp.arange(V)[None]
    for logits in (Logits(z, None, hit), Logits(z, y, hit)):
        assert_close(in_one_sweep(logits), in_two_sweeps(logits), rtol=1e-6)


@pytest.mark.parametrize(("vocab", "shape"), [(7, (1, 1)), (31, (5, 6)), (101, (4, 9))], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_any_shape_agrees_with_full_logits(seed, vocab, shape):
    args = case(seed, shape=shape, vocab=vocab, share=0.4)
    cfg = HeadConfig(block=3)
    got = value_and_gradients(*args, cfg=cfg, capacity=-(-shape[0] * shape[1] * 4 // 5))
    assert_close(got, reference(*args, cfg=cfg))


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_agrees_with_float64_loops(temperature):
    hidden, head, action, mask, _ = case()
    cfg = HeadConfig(temperature=temperature, forbidden=(0, 2), block=4)
    got = token_stats(hidden, head, action=action, action_mask=mask, cfg=cfg)
    arrays = [np.asarray(x) for x in (hidden, head, action, mask)]
    logp, entropy = oracles.token_stats(*arrays, temperature=temperature, forbidden=(0, 2))
    np.testing.assert_allclose(got.logp, logp, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got.entropy, entropy, rtol=1e-5, atol=1e-5)


def test_a_nearly_certain_policy_keeps_its_small_entropy_and_kl():
    """Large logits: naive sums would lose H and KL in the rounding of log Z."""
    hidden, head, action, mask, _ = case(3)
    hidden, teacher = 60 * hidden, TeacherHead(60.01 * hidden, head)
    got = token_stats(
        hidden, head, action=action, action_mask=mask, cfg=HeadConfig(block=4), teacher=teacher
    )
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(x, np.float64)) for x in (hidden, head)]
        t = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), teacher)
        logp = jax.nn.log_softmax(jnp.einsum("nrd,vd->nrv", *wide))
        t_logp = jax.nn.log_softmax(jnp.einsum("nrd,vd->nrv", *t))
        entropy = np.asarray(-jnp.sum(jnp.exp(logp) * logp, -1))
        kl = np.asarray(jnp.sum(jnp.exp(logp) * (logp - t_logp), -1))
    at = np.asarray(mask)
    np.testing.assert_allclose(np.asarray(got.entropy)[at], entropy[at], rtol=2e-3, atol=1e-6)
    np.testing.assert_allclose(np.asarray(got.reverse_kl)[at], kl[at], rtol=2e-2, atol=2e-5)


@pytest.mark.parametrize("capacity", [None, 20])
def test_masked_tokens_give_zero_and_no_gradient(capacity):
    hidden, head, action, mask, teacher = case(2)
    action = jnp.where(mask, action, 0)  # the padding id, here also forbidden
    hidden = jnp.where(mask[..., None], hidden, 1e3)  # would overflow exp if it counted
    cfg = HeadConfig(forbidden=(0,), block=4)
    stats, (d_hidden, d_head), *_ = value_and_gradients(
        hidden, head, action, mask, teacher, cfg=cfg, capacity=capacity
    )
    off = ~np.asarray(mask)
    assert off.any()
    for x in (*jax.tree.leaves(stats), d_hidden):
        assert np.isfinite(x).all()
        assert not np.any(np.asarray(x)[off])
    kept = value_and_gradients(
        jnp.where(mask[..., None], hidden, 0.0), head, action, mask, teacher, cfg=cfg
    )
    assert_close(d_head, kept[1][1])


def test_the_teacher_gets_no_gradient():
    hidden, head, action, mask, teacher = case()

    def loss(teacher):
        cfg = HeadConfig(block=4)
        stats = token_stats(hidden, head, action=action, action_mask=mask, cfg=cfg, teacher=teacher)
        return jnp.sum(stats.reverse_kl) + jnp.sum(stats.teacher_logp)

    assert not any(np.any(x) for x in jax.tree.leaves(jax.grad(loss)(teacher)))


def test_bfloat16_states_still_give_float32_statistics():
    """Products of bfloat16 numbers are exact in float32, so only the gradients are rounded."""
    args = case(3, jnp.bfloat16)
    cfg = HeadConfig(block=4)
    stats, grads, *_ = value_and_gradients(*args, cfg=cfg)
    want, wide_grads, *_ = reference(*args, cfg=cfg)
    assert {x.dtype for x in jax.tree.leaves(stats)} == {jnp.dtype(jnp.float32)}
    assert {x.dtype for x in grads} == {jnp.dtype(jnp.bfloat16)}
    assert_close(stats, want)
    assert_close(grads, wide_grads, rtol=1e-2)  # bfloat16 keeps 8 bits


@pytest.mark.parametrize("early", [True, False])
def test_too_little_capacity_is_never_silent(early):
    args = case()
    count, at = int(args[3].sum()), np.asarray(args[3])
    cfg = HeadConfig(block=4)
    exact = value_and_gradients(*args, cfg=cfg, capacity=count, early=early)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(exact))
    over = value_and_gradients(*args, cfg=cfg, capacity=count - 1, early=early)
    stats, (d_hidden, d_head), value, _ = jax.tree.map(np.asarray, over)
    assert np.isnan(value)
    assert np.isnan(d_head).all()
    for x in (*jax.tree.leaves(stats), d_hidden):
        assert np.isnan(x[at]).all()


# ------------------------------------------------------------------------------- many devices


@pytest.mark.parametrize(
    "shape",
    [{"data": 8}, {"tensor": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 4, "expert": 2}],
    ids=lambda s: "x".join(f"{k}{v}" for k, v in s.items()),
)
@pytest.mark.parametrize("capacity", [None, 20])
def test_eight_devices_agree_with_one(shape, capacity):
    args = case(4, shape=(16, R), vocab=40)
    one = HeadConfig(vocab=37, forbidden=(0,), block=4, tile=5)
    want = value_and_gradients(*args, cfg=one)
    mesh = make_mesh(shape)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    matrix = NamedSharding(mesh, PartitionSpec("tensor"))
    hidden, head, action, mask, teacher = args
    placed = (
        *jax.device_put((hidden,), rows), jax.device_put(head, matrix),
        *jax.device_put((action, mask), rows),
        TeacherHead(jax.device_put(teacher.states, rows), jax.device_put(teacher.matrix, matrix)),
    )  # fmt: skip
    if capacity is not None and mesh.shape["data"] * mesh.shape["fsdp"] == 1:
        capacity = 16 * R
    got = value_and_gradients(*placed, cfg=dataclasses.replace(one, mesh=mesh), capacity=capacity)
    assert_close(got, want)
    assert got[1][1].sharding.is_equivalent_to(matrix, 2)


# ------------------------------------------------------------------------------- the objective


@pytest.mark.parametrize(
    "options",
    [{}, {"entropy_coef": 0.01, "kl_coef": 0.1}, {"surrogate": "cispo"}],
    ids=str,
)
def test_the_whole_objective_agrees_with_full_logits(options):
    """Clipped surrogate on the hybrid advantage, exact KL, entropy bonus and k3, with gradients."""
    hidden, head, action, mask, teacher = case(5)
    k = jax.random.split(jax.random.key(6), 6)
    cfg, loss_cfg = HeadConfig(temperature=0.8, block=4), LossConfig(**options)
    now = full_logits(hidden, head, action, mask, cfg=cfg).logp
    streams = [jax.random.normal(key, (N, R)) for key in k]
    signal = Signal(
        advantage=streams[0], ce_weight=jnp.abs(streams[1]), old_logp=now + 0.3 * streams[2],
        kl_weight=streams[3], reference_logp=now + streams[4],
        diagnostics={},
    )  # fmt: skip
    share = jnp.abs(streams[5]) / N

    def per_token(stats, streams):
        signal, mask, share = streams
        return objective(stats, signal, action_mask=mask, share=share, cfg=loss_cfg)

    def naive(hidden, head):
        stats = full_logits(hidden, head, action, mask, teacher, cfg=cfg)
        return per_token(stats, (signal, mask, share))

    def fused(hidden, head):
        streams = signal, mask, share
        what = {"action": action, "action_mask": mask, "cfg": cfg, "capacity": 20}
        return head_loss(hidden, head, streams, per_token=per_token, teacher=teacher, **what)

    got, want = (
        jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(hidden, head)
        for loss in (fused, naive)
    )
    assert_close(got, want)


# ------------------------------------------------------------------------------- memory


def test_no_array_of_all_logits_exists_in_either_pass():
    args = case(vocab=53)
    run = functools.partial(value_and_gradients, cfg=HeadConfig(block=4))
    sizes = [math.prod(s) for s in shapes(jax.make_jaxpr(run)(*args))]
    assert 4 * 53 in sizes  # the walk does see the blocks
    assert max(sizes) <= 53 * E < N * R * 53


def shapes(jaxpr):
    """Every intermediate shape of a jaxpr, nested ones included."""
    for equation in jaxpr.eqns:
        for var in equation.outvars:
            yield var.aval.shape
        for value in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda x: isinstance(x, jax_core.Jaxpr | jax_core.ClosedJaxpr),
        ):
            if isinstance(value, jax_core.ClosedJaxpr):
                value = value.jaxpr
            if isinstance(value, jax_core.Jaxpr):
                yield from shapes(value)


def test_temporaries_stay_flat_when_tokens_double():
    """XLA's own account, at a vocabulary where the logits would be 30 times the limit."""
    d, vocab, cfg = 64, 20_000, HeadConfig(block=64)

    def temporaries(tokens):
        def loss(hidden, head, teacher):
            ones = jnp.ones((1, tokens))
            return head_loss(
                hidden, head, (ones,) * 3, per_token=weighted_sum, action=ones.astype(int),
                action_mask=ones > 0, cfg=cfg, teacher=teacher,
            )[0]  # fmt: skip

        states = jax.ShapeDtypeStruct((1, tokens, d), jnp.float32)
        head = jax.ShapeDtypeStruct((vocab, d), jnp.float32)
        step = jax.jit(jax.value_and_grad(loss, (0, 1)))
        compiled = step.lower(states, head, TeacherHead(states, head)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = temporaries(1024), temporaries(2048)
    # states and their gradients are [tokens, d]; nothing of size tokens x vocab may come with them
    assert large - small <= 4 * 1024 * d * 4
    assert large < 2 * 2048 * vocab * 4 / 10


# ------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HeadConfig(temperature=0.0), r"temperature=0\.0"),
    ],
)
def test_bad_options_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_arguments_are_named():
    hidden, head, action, mask, teacher = case()
    with pytest.raises(ValueError, match="capacity=0"):
        token_stats(hidden, head, action=action, action_mask=mask, cfg=HeadConfig(), capacity=0)
    short = teacher._replace(matrix=teacher.matrix[:-1])
    with pytest.raises(ValueError, match="teacher's head has 38 rows, the student's 39"):
        token_stats(hidden, head, action=action, action_mask=mask, cfg=HeadConfig(), teacher=short)


@pytest.mark.parametrize("rows", [100, 8_192, 50_257, 151_936])
@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_logits_of_a_block_fit(rows, platform):
    tokens = block_tokens(rows, platform=platform)
    assert tokens % 256 == 0
    assert tokens == 256 or tokens * rows * 4 <= (2e7 if platform == "cpu" else 1.4e9)
    tile = tile_rows(rows, platform=platform)
    assert rows % tile == 0
    assert tile <= 2048 if platform == "cpu" else tile == rows


def test_the_support_is_the_same_for_sampler_and_scorer():
    bias = support_bias(6, vocab=5, forbidden=(0, 3))
    np.testing.assert_array_equal(np.asarray(jax.nn.softmax(bias) > 0), [0, 1, 1, 0, 1, 0])
