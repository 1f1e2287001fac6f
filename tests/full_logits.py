"""The head's naive form: full logits, in float64 where numbers are compared; and cases for it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from atod_jax.core.fused import TeacherHead, head_loss, support_bias, token_stats
from atod_jax.types import TokenStats

N, R, D, E, V = 6, 5, 8, 12, 39


def case(seed=0, dtype=jnp.float32, *, shape=(N, R), vocab=V, share=0.5):
    """(hidden, head, action, mask, teacher)."""
    k = jax.random.split(jax.random.key(seed), 6)
    hidden = 2 * jax.random.normal(k[0], (*shape, D), dtype)
    head = jax.random.normal(k[1], (vocab, D), dtype)
    teacher = TeacherHead(
        2 * jax.random.normal(k[2], (*shape, E), dtype), jax.random.normal(k[3], (vocab, E), dtype)
    )
    action = jax.random.randint(k[4], shape, 3, vocab - 2)
    return hidden, head, action, jax.random.bernoulli(k[5], share, shape), teacher


def full_logits(hidden, head, action, mask, teacher=None, *, cfg):
    """The same numbers from the [N, R, V] arrays."""

    def log_softmax(states, matrix):
        logits = jnp.einsum("nrd,vd->nrv", states, matrix)
        bias = support_bias(len(matrix), vocab=cfg.vocab, forbidden=cfg.forbidden)
        return jax.nn.log_softmax(logits / cfg.temperature + bias[None, None], axis=-1)

    def picked(logp):
        chosen = jnp.take_along_axis(logp, action[:, :, None], axis=-1)[:, :, 0]
        return jnp.where(mask, chosen, 0.0)

    logp = log_softmax(hidden, head)
    p = jnp.exp(logp)
    entropy = jnp.where(mask, -jnp.sum(p * logp, axis=-1), 0.0)
    if teacher is None:
        return TokenStats(logp=picked(logp), entropy=entropy)
    t_logp = log_softmax(*teacher)
    kl = jnp.where(mask, jnp.sum(p * (logp - t_logp), axis=-1), 0.0)
    return TokenStats(
        logp=picked(logp), entropy=entropy, teacher_logp=picked(t_logp), reverse_kl=kl
    )


def weights(shape, seed=9):
    return tuple(jax.random.normal(jax.random.key(seed), (3, *shape), jnp.float32))


def weighted_sum(stats, weights):
    """A scalar that every statistic with a gradient enters, with its own weight per token."""
    total = jnp.sum(weights[0] * stats.logp) + jnp.sum(weights[1] * stats.entropy)
    if stats.reverse_kl is not None:
        total += jnp.sum(weights[2] * stats.reverse_kl)
    return total, {"tokens": jnp.sum(stats.logp < 0)}


@functools.partial(jax.jit, static_argnames=("cfg", "capacity", "early"))
def value_and_gradients(hidden, head, action, mask, teacher, *, cfg, capacity=None, early=True):
    """(statistics, gradients of `weighted_sum` for hidden states and head) of the fused head.

    Gradients of `head_loss`, or, not early, of a loss of finished statistics.
    """
    what = {"action": action, "action_mask": mask, "cfg": cfg, "capacity": capacity}
    what["teacher"], weight = teacher, weights(mask.shape)

    def loss(hidden, head):
        if early:
            return head_loss(hidden, head, weight, per_token=weighted_sum, **what)
        return weighted_sum(token_stats(hidden, head, **what), weight)

    stats = token_stats(hidden, head, **what)
    (value, sums), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(hidden, head)
    return stats, grads, value, sums


def reference(hidden, head, action, mask, teacher, *, cfg):
    """The same from full logits in float64: in float32 they are off by up to 1e-5 themselves."""
    with jax.enable_x64(True):
        hidden, head, teacher = jax.tree.map(
            lambda x: jnp.asarray(np.asarray(x, np.float64)), (hidden, head, teacher)
        )
        action, mask = jnp.asarray(np.asarray(action)), jnp.asarray(np.asarray(mask))

        def loss(hidden, head):
            stats = full_logits(hidden, head, action, mask, teacher, cfg=cfg)
            value, sums = weighted_sum(stats, weights(mask.shape))
            return value, (stats, sums)

        (value, (stats, sums)), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(hidden, head)
        return jax.tree.map(np.asarray, (stats, grads, value, sums))


def assert_close(got, want, *, rtol=1e-5):
    """Every array equal to `rtol` of its largest entry."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * max(np.abs(b).max(), 1e-6))
