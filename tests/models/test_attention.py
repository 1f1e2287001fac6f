"""Attention in blocks of query columns: the numbers and gradients of attention at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atod_jax.models import layers


def inputs(t, l, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"q": (2, t, 4, 8), "k": (2, l, 2, 8), "v": (2, l, 2, 8)}
    q, k, v = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in shapes.values())
    mask = np.arange(l)[None, :] <= np.arange(t)[:, None] + l - t
    mask = np.broadcast_to(mask, (2, t, l)).copy()
    mask[0, :, :3] = False  # padding on the left: the first rows see nothing
    return q, k, v, jnp.asarray(mask)


@pytest.mark.parametrize(("t", "l"), [(17, 17), (16, 16), (9, 20), (8, 8)])
def test_blocks_change_nothing(monkeypatch, t, l):
    q, k, v, mask = inputs(t, l)

    def total(q, k, v):
        y = layers.attend(q, k, v, mask=mask)
        return jnp.sum(jnp.sin(y)), y

    def both():
        (_, y), grads = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(q, k, v)
        return y, *grads

    whole = both()
    monkeypatch.setattr(layers, "QUERIES", 8)
    for ours, theirs in zip(both(), whole):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_long_prompts_need_little_memory():
    """All scores of one row would be 4 heads * 2048 * 2048 * 4 bytes = 67 MB."""
    shapes = [(1, 2048, 4, 8), (1, 2048, 2, 8), (1, 2048, 2, 8)]
    q, k, v = (jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)
    mask = jax.ShapeDtypeStruct((1, 2048, 2048), bool)

    def loss(q, k, v, mask):
        return jnp.sum(layers.attend(q, k, v, mask=mask) ** 2)

    grad = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    used = grad.lower(q, k, v, mask).compile().memory_analysis().temp_size_in_bytes
    assert used < 67e6  # scores and their gradients of a block are 17 MB, the mask is 4 MB
