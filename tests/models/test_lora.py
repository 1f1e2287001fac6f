"""Adapters: nothing at the start, the merged weights later, and all that an update touches."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from toy_update import MODEL, SCORE, assert_trees_close, make_batch, plain_loss

from atod_jax.core.losses import LossConfig
from atod_jax.device.learner import init_state, make_update
from atod_jax.device.optim import OptimConfig, make_optimizer
from atod_jax.models import AXES, build, lora
from atod_jax.models.transformer import empty_cache
from atod_jax.sharding import RULES, make_mesh, param_shardings, place, to_host

RANK, ALPHA = 3, 6.0
DENSE = dataclasses.replace(MODEL.config, num_layers=3)
CONFIGS = {
    "dense": DENSE,
    "one layer": dataclasses.replace(DENSE, num_layers=1),
    "biases, own head": dataclasses.replace(
        DENSE, qkv_bias=True, qk_norm=False, tie_embeddings=False
    ),
    "mixture": dataclasses.replace(DENSE, num_experts=4, experts_per_token=2),
}


def adapted(config):
    return lora.adapted(build(config), rank=RANK, alpha=ALPHA)


@functools.cache
def trained_params(config, seed=0):
    """Weights twice as large as fresh ones, with adapters that change much."""
    params = jax.tree.map(lambda x: 2 * x, adapted(config).init(jax.random.key(seed)))
    rng = np.random.default_rng(seed)
    adapters, base = lora.split(params)
    loud = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.1, x.shape), x.dtype), adapters)
    return lora.join(loud, base)


def merge(params):
    """W + (alpha / rank) A B, layer by layer as plain matrices."""
    flat = {path: jnp.asarray(x) for path, x in flatten_dict(params["base"]).items()}
    adapters = flatten_dict(params["lora"])
    for owner in {path[:-1] for path in adapters}:
        w, a, b = flat[*owner, "kernel"], adapters[*owner, "lora_a"], adapters[*owner, "lora_b"]
        change = jnp.stack([*map(delta, a, b, w)]) if owner[0] == "layers" else delta(a, b, w)
        flat[*owner, "kernel"] = w + change
    return unflatten_dict(flat)


def delta(a, b, w):
    return ALPHA / RANK * (a.reshape(-1, RANK) @ b.reshape(RANK, -1)).reshape(w.shape)


def states(model, params):
    """Final states of every token, and of the last ones of two prompts and of what follows them."""
    tokens, lengths = random_lines(4, 9)

    @jax.jit
    def run(params):
        weights = model.serve(params)
        last, prompts = model.prefill(weights, tokens, lengths)
        numbers = jnp.arange(4)
        cache = enter(
            empty_cache(model.config, 4, 9, recent=1),
            prompts,
            slot=numbers,
            line=numbers,
            start=jnp.zeros(4, jnp.int32),
            length=jnp.array(lengths[:, 0]),
        )
        return model.hidden(params, tokens, lengths), last, model.step(weights, numbers, cache)[0]

    return [np.asarray(x) for x in run(params)]


# ---------------------------------------------------------------------------------------- the model


@pytest.mark.parametrize("name", CONFIGS)
def test_fresh_adapters_change_nothing(name):
    model, plain = adapted(CONFIGS[name]), build(CONFIGS[name])
    params = model.init(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, model.plain(params), params["base"])
    np.testing.assert_array_equal(model.head(params), plain.head(params["base"]))
    for ours, want in zip(states(model, params), states(plain, params["base"]), strict=True):
        np.testing.assert_array_equal(ours, want)


@pytest.mark.parametrize("name", CONFIGS)
def test_adapters_act_as_the_merged_weights(name):
    """Up to the rounding of float32, which every further layer adds to."""
    config = CONFIGS[name]
    model, params = adapted(config), trained_params(config)
    merged = merge(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), model.plain(params), merged
    )
    ours, want = states(model, params), states(build(config), merged)
    before, tolerance = states(build(config), params["base"]), 1e-6 * (2 * config.num_layers - 1)
    for x, y, z in zip(ours, want, before, strict=True):
        size = np.abs(y).max()
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * size)
        assert np.abs(z - y).max() > 0.5 * size


def test_a_is_random_within_its_bound_and_b_is_zero():
    base = build(DENSE).init(jax.random.key(0))
    one, again, other = (lora.init_adapters(base, jax.random.key(n), rank=8) for n in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, one, again)
    bounds = {"q": 16, "k": 16, "v": 16, "o": 16, "gate": 16, "up": 16, "down": 24}
    seen = []
    for (*_, module, name), x in flatten_dict(one).items():
        if name == "lora_b":
            assert not np.asarray(x).any()
            continue
        bound = bounds[module] ** -0.5
        assert 0.9 * bound < np.abs(x).max() <= bound
        assert abs(np.mean(x)) < 0.2 * bound
        seen.append(float(np.ravel(x)[0]))
    assert len(set(seen)) == len(seen) == 14  # every matrix draws its own numbers
    draws = [x["last"]["attn"]["q"]["lora_a"] for x in (one, other)]
    assert not np.array_equal(*draws)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_adapter_matches_exactly_one_pattern(name):
    shapes = jax.eval_shape(adapted(CONFIGS[name]).init, jax.random.key(0))
    modules = {"attn"} if "mixture" in name else {"attn", "mlp"}
    flat = flatten_dict(shapes["lora"])
    assert {path[1] for path in flat} == modules
    for path, leaf in flat.items():
        found = [axes for pattern, axes in AXES if re.fullmatch(pattern, "/".join(path))]
        assert [len(axes) for axes in found] == [leaf.ndim], path
