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
from runs import pooled
from tiny_models import random_lines
from toy_update import HEAD, MODEL, PLENTY, assert_trees_close, make_batch, plain_loss

from atod_jax.core.losses import LossConfig
from atod_jax.device.learner import init_state, make_update
from atod_jax.device.optim import OptimConfig, make_optimizer
from atod_jax.models import AXES, build, lora
from atod_jax.models.serving import empty_cache, enter
from atod_jax.sharding import RULES, make_mesh, param_shardings, place, to_host

RANK, ALPHA = 3, 6.0
DENSE = dataclasses.replace(MODEL.config, num_layers=3, vocab_size=48)
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


# --------------------------------------------------------------------------------------- the update


@functools.cache
def updates(tx, remat="none", mesh=None, config=MODEL.config, rate=1.0):
    """`update(state, piece) -> (state, metrics)`."""
    update = make_update(
        adapted(dataclasses.replace(config, remat=remat)),
        tx,
        learning_rate=lambda step: jnp.float32(rate),
        loss=LossConfig(),
        head=dataclasses.replace(HEAD, mesh=mesh),
    )

    def one(state, piece):
        state, means = update(state, [piece], room=PLENTY)
        return state, pooled(means)

    return one


PLAIN = optax.identity()
ADAM = make_optimizer(OptimConfig(weight_decay=0.1))


def start(params, tx):
    return init_state(adapted(MODEL.config), params, tx=tx)


@pytest.mark.parametrize("remat", ["none", "full", "dots"])
def test_the_gradient_is_that_of_the_merged_model(remat):
    params, piece = trained_params(MODEL.config), make_batch()
    state, metrics = updates(PLAIN, remat)(start(params, PLAIN), piece)
    gradient = jax.tree.map(jnp.subtract, params["lora"], state.params)

    def loss(adapters):
        return plain_loss(merge({"base": params["base"], "lora": adapters}), piece)

    value, expected = jax.jit(jax.value_and_grad(loss))(params["lora"])
    assert metrics["loss/total"].value() == pytest.approx(float(value), rel=1e-5)
    assert_trees_close(gradient, expected)


def test_what_trains_and_what_does_not():
    params = adapted(MODEL.config).init(jax.random.key(0))
    model = adapted(MODEL.config)
    trained, frozen = model.split(params)
    assert (trained, frozen) == (params["lora"], params["base"])
    assert model.join(trained, frozen) == params
    assert MODEL.split(params) == (params, None)  # whatever its names are
    assert MODEL.join(params, None) is params


def test_an_update_touches_the_adapters_alone():
    params = adapted(MODEL.config).init(jax.random.key(0))
    before = jax.tree.map(np.array, params)
    state = start(params, ADAM)
    moments = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim)
    assert moments == 2 * sum(x.size for x in jax.tree.leaves(params["lora"]))
    for seed in range(3):
        state, _ = updates(ADAM, rate=0.01)(state, make_batch(seed=seed))
    parts = (state.frozen, params["base"], before["base"])
    for a, b, c in zip(*map(jax.tree.leaves, parts), strict=True):
        assert a is b  # neither copied nor given away
        np.testing.assert_array_equal(a, c)
    jax.tree.map(np.testing.assert_array_equal, params["lora"], before["lora"])
    for path, x in flatten_dict(state.params).items():
        assert np.abs(x - flatten_dict(before["lora"])[path]).max() > 1e-3, path


def test_the_loss_falls():
    piece = make_batch()
    zero = jnp.zeros_like(piece.share)
    piece = piece._replace(signal=piece.signal.replace(advantage=zero, ce_weight=zero + 1))
    fresh = adapted(MODEL.config).init(jax.random.key(0))
    loud = jax.tree.map(lambda x: 8 * x, fresh["base"])
    state, losses = start(lora.join(fresh["lora"], loud), ADAM), []
    for _ in range(60):
        state, metrics = updates(ADAM, rate=0.02)(state, piece)
        losses.append(metrics["loss/total"].value())
    assert losses[-1] < 0.2 * losses[0]


def test_an_update_is_the_same_on_eight_devices():
    config = dataclasses.replace(
        MODEL.config, vocab_size=24, num_heads=4, num_kv_heads=4, intermediate_size=32
    )
    params, piece = trained_params(config), make_batch()
    alone, metrics = updates(PLAIN, config=config)(start(params, PLAIN), piece)
    mesh = make_mesh({"fsdp": 2, "tensor": 4})
    places = {name: param_shardings(part, AXES, RULES, mesh=mesh) for name, part in params.items()}
    assert "tensor" in places["lora"]["layers"]["mlp"]["up"]["lora_b"].spec
    assert "fsdp" in places["lora"]["layers"]["mlp"]["up"]["lora_a"].spec
    with jax.set_mesh(mesh):
        state = start(jax.device_put(params, places), PLAIN)
        spread, others = updates(PLAIN, mesh=mesh, config=config)(state, place(piece, mesh))
    assert spread.params["last"]["attn"]["o"]["lora_a"].sharding.spec[0] == "tensor"
    gradients = [
        jax.tree.map(lambda a, b: to_host(a) - to_host(b), params["lora"], state.params)
        for state in (spread, alone)
    ]
    assert_trees_close(*gradients)
    assert {k: m.value() for k, m in others.items()} == pytest.approx(
        {k: m.value() for k, m in metrics.items()}, rel=1e-5, abs=1e-6
    )
