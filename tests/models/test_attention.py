"""Attention inside turns: the parts that the kernels of other platforms need, and its memory."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

from atod_jax.models import attention
from atod_jax.models.attention import packed_layout, turns_of
from atod_jax.sharding import make_mesh


@pytest.mark.parametrize(
    ("lengths", "columns", "size", "offset"),
    [
        ([3], 5, [3, 2], [0, 3, -1]),  # what is behind the turns is one of its own
        ([5], 5, [5, -1], [0, -1, -1]),
        ([0], 5, [5, -1], [0, -1, -1]),
        ([2, 0, 3, 0], 8, [2, 3, 3, -1, -1], [0, 2, 5, -1, -1, -1]),
        ([0, 4, 0, 4], 8, [4, 4, -1, -1, -1], [0, 4, -1, -1, -1, -1]),
    ],
)
def test_packed_layout(lengths, columns, size, offset):
    got = packed_layout(jnp.array([lengths]), columns)
    np.testing.assert_array_equal(got[0], [size])
    np.testing.assert_array_equal(got[1], [offset])


def test_where_the_turns_of_shared_keys_begin():
    """Counted in numbers of the keys, which have half as many heads as the queries."""
    size, offset = packed_layout(jnp.array([[2, 3], [5, 0]]), 5)
    q, k = jnp.zeros((2, 5, 4, 8)), jnp.zeros((2, 5, 2, 8))
    got = attention.library()._fix_seqlen_offsets(size, size, offset, offset, q, k)
    begins = np.array([[0, 2, 5, 10], [10, 10, 10, 10]])
    for ours, want in zip(
        got, ([[2, 3, 5], [0] * 3], [[2, 3, 5], [0] * 3], begins * 32, begins * 16)
    ):
        np.testing.assert_array_equal(ours, want)


def test_turns():
    turns = turns_of(jnp.array([[2, 0, 3], [0, 0, 0]]), 7)
    np.testing.assert_array_equal(turns.number, [[0, 0, 2, 2, 2, 3, 3], [3] * 7])
    np.testing.assert_array_equal(turns.position, [[0, 1, 0, 1, 2, 0, 1], [*range(7)]])
    np.testing.assert_array_equal(turns.starts, [[0, 2, 2], [0, 0, 0]])


def test_long_prompts_need_little_memory():
    """All scores of one row would be 4 heads * 2048 * 2048 * 4 bytes = 67 MB."""
    shapes = [(1, 2048, 4, 8), (1, 2048, 2, 8), (1, 2048, 2, 8)]
    q, k, v = (jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)
    lengths = jax.ShapeDtypeStruct((1, 2), jnp.int32)

    def loss(q, k, v, lengths):
        return jnp.sum(attention.attend(q, k, v, turns=turns_of(lengths, 2048)) ** 2)

    grad = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    used = grad.lower(q, k, v, lengths).compile().memory_analysis().temp_size_in_bytes
    assert used < 67e6  # scores and their gradients of a block are 17 MB


@pytest.mark.parametrize("shape", [None, {"data": 4, "tensor": 2}])
def test_the_kernel_of_tpus(shape, monkeypatch):
    """Splash attention, interpreted: the numbers and gradients of attention written out."""
    kernel = functools.partial(splash_attention_kernel.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash_attention_kernel, "make_splash_mha", kernel)
    rng, columns = np.random.default_rng(0), 150
    shapes = [(4, columns, 4, 128), (4, columns, 2, 128), (4, columns, 2, 128)]
    qkv = [jnp.asarray(rng.standard_normal(s), jnp.float32) for s in shapes]
    turns = turns_of(jnp.array([[70, 1, 0, 79], [0, 50, 60, 0], [150, 0, 0, 0], [0] * 4]), columns)

    def both(attend):
        def total(q, k, v):
            y = attend(q, k, v)
            return jnp.sum(jnp.sin(y)), y

        (_, y), grads = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(*qkv)
        return y, *grads

    want = both(functools.partial(attention.attend, turns=turns))
    monkeypatch.setattr(attention, "kernel_for", lambda *_: "splash")
    with jax.set_mesh(make_mesh(shape)) if shape else contextlib.nullcontext():
        got = both(functools.partial(attention.attend, turns=turns))
    for ours, theirs in zip(got, want):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
