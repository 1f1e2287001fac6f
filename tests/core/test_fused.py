"""The blocked head against full logits: values, gradients, and the memory it must not use."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.extend import core as jax_core

from atod_jax.core.fused import token_stats

N, R, D, V = 5, 4, 8, 37


def case(seed=0, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), 4)
    hidden = 2 * jax.random.normal(keys[0], (N, R, D), dtype)
    head = jax.random.normal(keys[1], (V, D), dtype)
    action = jax.random.randint(keys[2], (N, R), 3, V)
    mask = jnp.arange(R)[None] < jax.random.randint(keys[3], (N, 1), 0, R + 1)
    return hidden, head, action, mask


def full_logits(hidden, head, action, mask, *, temperature, forbidden=()):
    """The same numbers from the [N, R, V] array."""
    keep = jnp.array([v not in forbidden for v in range(V)])[None, None]
    logits = jnp.einsum("nrd,vd->nrv", hidden, head) / temperature
    logp = jax.nn.log_softmax(logits, axis=-1, where=keep)
    entropy = -jnp.sum(jnp.exp(logp) * logp, axis=-1, where=keep)
    picked = jnp.take_along_axis(logp, action[:, :, None], axis=-1)[:, :, 0]
    return jnp.where(mask, picked, 0.0), jnp.where(mask, entropy, 0.0)


@pytest.mark.parametrize("forbidden", [(), (0, 2)], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_agrees_with_float64_loops(temperature, forbidden):
    hidden, head, action, mask = case()
    got = token_stats(
        hidden, head, action, mask, temperature=temperature, block=6, forbidden=forbidden
    )
    arrays = [np.asarray(x) for x in (hidden, head, action, mask)]
    logp, entropy = oracles.token_stats(*arrays, temperature=temperature, forbidden=forbidden)
    np.testing.assert_allclose(got.logp, logp, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got.entropy, entropy, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block", [1, 6, 20, 64])
@pytest.mark.parametrize("forbidden", [(), (0, 2)], ids=str)
def test_values_and_gradients_agree_with_full_logits(block, forbidden):
    hidden, head, action, mask = case(1)
    weights = jax.random.normal(jax.random.key(9), (2, N, R))

    def total(logp, entropy):
        return jnp.sum(weights[0] * logp + weights[1] * entropy)

    def fused(hidden, head):
        stats = token_stats(
            hidden, head, action, mask, temperature=0.7, block=block, forbidden=forbidden
        )
        return total(stats.logp, stats.entropy)

    def plain(hidden, head):
        return total(*full_logits(hidden, head, action, mask, temperature=0.7, forbidden=forbidden))

    got = jax.jit(jax.value_and_grad(fused, (0, 1)))(hidden, head)
    expected = jax.jit(jax.value_and_grad(plain, (0, 1)))(hidden, head)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_masked_tokens_give_zero_and_no_gradient():
    hidden, head, action, mask = case(2)
    action = jnp.where(mask, action, 0)  # the padding id, here also forbidden

    def total(hidden):
        stats = token_stats(hidden, head, action, mask, temperature=1.0, block=8, forbidden=(0,))
        return jnp.sum(stats.logp) + jnp.sum(stats.entropy), stats

    (_, stats), grad = jax.value_and_grad(total, has_aux=True)(hidden)
    off = ~np.asarray(mask)
    assert off.any()
    assert np.isfinite(grad).all()
    for x in (stats.logp, stats.entropy, grad):
        assert not np.any(np.asarray(x)[off])


def test_bfloat16_states_still_give_float32_statistics():
    hidden, head, action, mask = case(3, jnp.bfloat16)
    got = token_stats(hidden, head, action, mask, temperature=1.0, block=8)
    assert got.logp.dtype == got.entropy.dtype == jnp.float32
    wide = [x.astype(jnp.float32) for x in (hidden, head)]
    expected = token_stats(*wide, action, mask, temperature=1.0, block=8)
    np.testing.assert_allclose(got.logp, expected.logp, rtol=1e-4, atol=1e-4)


def test_no_array_of_all_logits_exists_in_either_pass():
    hidden, head, action, mask = case()
    block = 5

    def total(hidden, head):
        stats = token_stats(hidden, head, action, mask, temperature=1.0, block=block)
        return jnp.sum(stats.logp) + jnp.sum(stats.entropy)

    jaxpr = jax.make_jaxpr(jax.grad(total, (0, 1)))(hidden, head).jaxpr
    with_vocabulary = [s for s in shapes(jaxpr) if V in s]
    assert (block, V) in with_vocabulary  # the walk does see the blocks
    assert max(math.prod(s) for s in with_vocabulary) <= max(block, D) * V


def shapes(jaxpr):
    """Every intermediate shape of a jaxpr, nested ones included."""
    for equation in jaxpr.eqns:
        for var in equation.outvars:
            yield var.aval.shape
        for inner in jax_core.jaxprs_in_params(equation.params):
            yield from shapes(inner)


@pytest.mark.parametrize(("name", "value"), [("block", 0), ("temperature", 0.0)])
def test_bad_options_are_named(name, value):
    options = {"block": 8, "temperature": 1.0, name: value}
    with pytest.raises(ValueError, match=name):
        token_stats(*case(), **options)
