"""The TPU kernels of the head, interpreted on the CPU; lowered, and where libtpu is, compiled."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from atod_jax.core import head_pallas, head_tiles
from atod_jax.core.fused import HeadConfig, TeacherHead, Tiling, token_stats
from atod_jax.core.head_tiles import Cotangents, Factors, Head, Saved, TeacherSaved
from atod_jax.sharding import make_mesh

D, E, SCALE = 8, 12, 1.4
HANGING = (40, 300)  # tokens and rows: with 16 x 128 the last blocks hang over both ends
EXACT = (32, 256)
ONE_TILE = (5, 37)
BLOCKS = {"token_block": 16, "vocab_block": 128}
REAL = {"token_block": 256, "vocab_block": 512}
QWEN = 151_936  # rows of the head
KINDS = (jnp.float32, jnp.bfloat16)


def case(shape, dtype=jnp.float32, *, teacher):
    """(head, cotangents) of random numbers."""
    tokens, vocab = shape
    k = jax.random.split(jax.random.key(0), 8)
    normal = functools.partial(jax.random.normal, dtype=dtype)
    student = Factors(2 * normal(k[0], (tokens, D)), normal(k[1], (vocab, D)))
    theirs = Factors(2 * normal(k[2], (tokens, E)), normal(k[3], (vocab, E))) if teacher else None
    outside = jnp.isin(jnp.arange(vocab), jnp.array([0, 5, vocab - 2]))
    # a third of the actions live on other devices, some just past the end, in the last block
    action = jax.random.randint(k[4], (tokens,), -vocab // 4, vocab + vocab // 4)
    action = action.at[:3].set(jnp.array([vocab - 1, vocab, vocab + 1]))
    action = jnp.where(jnp.isin(action, jnp.array([0, 5, vocab - 2])), 1, action)
    ct = Cotangents(*jax.random.normal(k[5], (3 if teacher else 2, tokens)))
    return Head(student, theirs, jnp.where(outside, -1e30, 0.0), action), ct


def statistics(part):
    """log Z, H and what else follows from a Partial, per token, as `Saved`."""
    log_sum = jnp.log(part.exp_sum)
    saved = Saved(part.top + log_sum, log_sum - part.weighted_sum / part.exp_sum)
    if part.teacher is None:
        return saved
    teacher_log_sum = jnp.log(part.teacher.exp_sum)
    kl = part.teacher.cross / part.exp_sum - log_sum + teacher_log_sum
    return saved._replace(teacher=TeacherSaved(part.teacher.top + teacher_log_sum, kl))


def action_logits(part):
    return part.action_logit, part.teacher and part.teacher.action_logit


def run(engine, head, ct):
    """((Partial, Saved), gradients) of a module with the two functions."""
    options = {"scale": SCALE, **BLOCKS}
    part, kept = jax.jit(functools.partial(engine.forward, **options))(head)
    saved = statistics(part)
    backward = jax.jit(functools.partial(engine.backward, **options))
    return (part, saved), backward(head, kept, saved=saved, ct=ct)


def full_logits(head, ct):
    """The logits of the actions, `Saved`, and gradients, from all logits in float64."""
    with jax.enable_x64(True):
        wide = jax.tree.map(
            lambda x: jnp.asarray(np.asarray(x, np.float64)), (head._replace(action=None), ct)
        )
        (student, teacher, bias, _), ct = wide
        here = jnp.asarray(np.asarray(head.action))[:, None] == jnp.arange(len(bias))[None]

        def measure(student):
            z = student.states @ student.matrix.T * SCALE + bias[None]
            log_z = jax.nn.logsumexp(z, axis=1)
            logp = z - log_z[:, None]
            p = jnp.exp(logp)
            picked = jnp.sum(jnp.where(here, z, 0.0), axis=1)
            saved = Saved(log_z, -jnp.sum(p * logp, axis=1))
            if teacher is None:
                return (picked, None), saved
            y = teacher.states @ teacher.matrix.T * SCALE + bias[None]
            t_log_z = jax.nn.logsumexp(y, axis=1)
            kl = jnp.sum(p * (logp - (y - t_log_z[:, None])), axis=1)
            t_picked = jnp.sum(jnp.where(here, y, 0.0), axis=1)
            return (picked, t_picked), saved._replace(teacher=TeacherSaved(t_log_z, kl))

        def loss(student):
            (picked, t_picked), saved = measure(student)
            total = jnp.sum(ct.logp * (picked - saved.log_z)) + jnp.sum(ct.entropy * saved.entropy)
            if teacher is not None:
                total += jnp.sum(ct.kl * saved.teacher.kl)
            return total, (picked, t_picked, saved)

        grads, values = jax.jit(jax.grad(loss, has_aux=True))(student)
        return jax.tree.map(np.asarray, (values, tuple(grads)))


def assert_close(got, want, *, rtol=1e-5):
    """Every array equal to `rtol` of its largest entry."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * max(np.abs(b).max(), 1e-6))


# ------------------------------------------------------------------------------- the numbers


@pytest.mark.parametrize("teacher", [False, True], ids=["alone", "teacher"])
def test_agrees_with_tiles_and_with_full_logits(teacher):
    args = case(HANGING, teacher=teacher)
    got = run(head_pallas, *args)
    assert_close(got, run(head_tiles, *args))
    (part, saved), grads = got
    assert_close(((*action_logits(part), saved), grads), full_logits(*args))


@pytest.mark.parametrize("shape", [EXACT, ONE_TILE], ids=str)
def test_agrees_with_full_logits_where_nothing_hangs_over(shape):
    args = case(shape, teacher=True)
    (part, saved), grads = run(head_pallas, *args)
    assert_close(((*action_logits(part), saved), grads), full_logits(*args))


def test_bfloat16_rounds_only_the_logit_gradient():
    """Products of bfloat16 numbers are exact in float32, so the statistics keep full precision.

    The gradients are sums of products with dL/dz rounded to 8 bits. That is 2**-9 of each term,
    and the largest terms are some four times the largest sum.
    """
    args = case(HANGING, jnp.bfloat16, teacher=True)
    (part, saved), grads = run(head_pallas, *args)
    assert {x.dtype for x in jax.tree.leaves((part, grads))} == {jnp.dtype(jnp.float32)}
    values, wide_grads = full_logits(*args)
    assert_close((*action_logits(part), saved), values)
    assert_close(grads, wide_grads, rtol=2**-7)


def test_a_device_without_any_supported_row_counts_for_nothing():
    head, _ = case(ONE_TILE, teacher=True)
    head = head._replace(bias=jnp.full_like(head.bias, -1e30))
    part, _ = head_pallas.forward(head, scale=SCALE, **BLOCKS)
    assert np.all(np.asarray(part.top) < -1e29)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(part))


# ------------------------------------------------------------------------------- through `fused`


def public_case(rows=8, vocab=300):
    k = jax.random.split(jax.random.key(1), 6)
    shape = rows, 5
    hidden, head = jax.random.normal(k[0], (*shape, D)), jax.random.normal(k[1], (vocab, D))
    teacher = TeacherHead(jax.random.normal(k[2], (*shape, E)), jax.random.normal(k[3], (vocab, E)))
    action = jax.random.randint(k[4], shape, 3, vocab - 8)
    return hidden, head, action, jax.random.bernoulli(k[5], 0.6, shape), teacher


def value_and_gradients(hidden, head, action, mask, teacher, *, backend, mesh=None, capacity=None):
    """(statistics, gradients for hidden states and head) of a weighted sum of all statistics."""
    tiling = Tiling(backend=backend, **BLOCKS)
    cfg = HeadConfig(temperature=0.7, vocab=295, forbidden=(0, 2), tiling=tiling, mesh=mesh)
    weights = jax.random.normal(jax.random.key(2), (3, *mask.shape))

    @jax.jit
    def step(hidden, head, teacher):
        def loss(hidden, head):
            stats = token_stats(
                hidden,
                head,
                action=action,
                action_mask=mask,
                cfg=cfg,
                capacity=capacity,
                teacher=teacher,
            )
            parts = (stats.logp, stats.entropy, stats.reverse_kl)
            return sum(jnp.sum(w * x) for w, x in zip(weights, parts) if x is not None), stats

        return jax.grad(loss, (0, 1), has_aux=True)(hidden, head)

    grads, stats = step(hidden, head, teacher)
    return stats, grads


@pytest.mark.parametrize(("with_teacher", "capacity"), [(False, None), (True, 30)])
def test_the_public_function_agrees_with_tiles(with_teacher, capacity):
    *args, teacher = public_case()
    args.append(teacher if with_teacher else None)
    got = value_and_gradients(*args, backend="pallas", capacity=capacity)
    assert_close(got, value_and_gradients(*args, backend="tiles"))


def test_eight_devices_agree_with_one():
    """150 rows of the head on each half of the tensor axis: its last block hangs over the end."""
    hidden, head, action, mask, teacher = public_case()
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    matrix = NamedSharding(mesh, PartitionSpec("tensor"))
    hidden, action, mask, states = jax.device_put((hidden, action, mask, teacher.states), rows)
    head, t_head = jax.device_put((head, teacher.matrix), matrix)
    placed = hidden, head, action, mask, TeacherHead(states, t_head)
    got = value_and_gradients(*placed, backend="pallas", mesh=mesh)
    assert_close(got, value_and_gradients(*public_case(), backend="tiles"))


# ------------------------------------------------------------------------------- for a TPU


def shapes(widths, dtype, *, tokens=4096, vocab=QWEN, sharding=None):
    """(head, saved, cotangents) without numbers."""
    array = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
    student, *more = (Factors(array((tokens, w), dtype), array((vocab, w), dtype)) for w in widths)
    per_token = array((tokens,), jnp.float32)
    bias, action = array((vocab,), jnp.float32), array((tokens,), jnp.int32)
    if not more:
        head = Head(student, None, bias, action)
        return head, Saved(per_token, per_token), Cotangents(per_token, per_token)
    saved = Saved(per_token, per_token, TeacherSaved(per_token, per_token))
    return Head(student, more[0], bias, action), saved, Cotangents(*[per_token] * 3)


def both_passes(head, saved, ct):
    options = {"scale": SCALE, **REAL}
    part, kept = head_pallas.forward(head, **options)
    return part, head_pallas.backward(head, kept, saved=saved, ct=ct, **options)


@pytest.mark.parametrize("dtype", KINDS, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("widths", [(1024,), (2048,), (1024, 1024), (2048, 2048)], ids=str)
def test_lowers_for_a_tpu(widths, dtype, monkeypatch):
    """To Mosaic's input language; only libtpu knows whether the compiler takes it, see below."""
    monkeypatch.setattr(head_pallas, "_interpret", lambda: False)
    traced = jax.jit(both_passes).trace(*shapes(widths, dtype))
    try:
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
    except ImportError as error:
        pytest.skip(f"this jaxlib has no Mosaic: {error}")
    assert text.count("@tpu_custom_call") == 3


def test_makes_no_copy_of_the_head_matrix():
    head, *_ = shapes((1024, 2048), jnp.bfloat16)
    jaxpr = jax.make_jaxpr(functools.partial(head_pallas.forward, scale=SCALE, **REAL))(head)
    made = [v.aval.size for equation in jaxpr.eqns for v in equation.outvars]
    assert max(made) <= max(4096 * 8, QWEN)  # the statistics, and the bias as a row


def tiles_of(widths, dtype, *, keep_rows, **blocks):
    found = []

    def look(head):
        tiles = head_pallas._Tiles.of(
            head, **{**REAL, **blocks}, keep_rows=keep_rows, width=widths[0]
        )
        found.append((tiles, tiles.vmem_bytes(head)))

    jax.eval_shape(look, shapes(widths, dtype)[0])
    return found[0]


@pytest.mark.parametrize("keep_rows", [False, True], ids=["d_states", "d_matrix"])
@pytest.mark.parametrize("dtype", KINDS, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("teacher", [2048, 4096])
def test_tiles_shrink_until_they_fit(teacher, dtype, keep_rows):
    tiles, used = tiles_of((2560, teacher), dtype, keep_rows=keep_rows)
    assert used < head_pallas.VMEM_BYTES
    assert tiles.token_block % 16 == 0
    assert tiles.vocab_block % 128 == 0
    assert tiles.token_block >= 128
    _, small = tiles_of((64, 64), dtype, keep_rows=keep_rows, token_block=1, vocab_block=1)
    assert small < 2**20


def test_widths_that_cannot_fit_are_named():
    head, *_ = shapes((32_768,), jnp.float32)
    forward = functools.partial(head_pallas.forward, scale=SCALE, **REAL)
    with pytest.raises(ValueError, match=r"head\.token_block=16, head\.vocab_block=128"):
        jax.eval_shape(forward, head)


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["v5e:2x2", "v6e:2x2"])
@pytest.mark.parametrize("dtype", KINDS, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("widths", [(1024,), (2048, 2048), (2560, 4096)], ids=str)
def test_compiles_for_a_tpu_that_is_not_there(widths, dtype, chip, monkeypatch):
    """The real compiler, ahead of time: layouts, and VMEM within the limit."""
    pytest.importorskip(
        "libtpu", reason="pip install libtpu to run the TPU compiler on any machine"
    )
    for name, value in {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}.items():
        monkeypatch.setenv(name, os.environ.get(name, value))
    device = topologies.get_topology_desc(chip, platform="tpu").devices[0]
    monkeypatch.setattr(head_pallas, "_interpret", lambda: False)
    args = shapes(widths, dtype, tokens=4000, sharding=SingleDeviceSharding(device))
    jax.jit(both_passes).trace(*args).lower().compile()
