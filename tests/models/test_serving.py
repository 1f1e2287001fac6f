"""Playing from a cache gives the states of reading the whole, whatever the slots do meanwhile."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import FAMILIES, by_turn, each_alone, loud_params, make_turns, packed

from atod_jax.models import AXES, build, lora, transformer
from atod_jax.models.checkpoint_io import save_hf
from atod_jax.models.loading import load_sharded
from atod_jax.models.serving import commit, empty_cache, enter
from atod_jax.sharding import RULES, make_mesh, param_shardings

QWEN3 = FAMILIES["qwen3"]
SIZES, PROMPTS = [14, 6, 9, 11, 5, 12], [8, 1, 5, 7, 2, 8]
TURNS = make_turns(SIZES)
TURNS[5][:8] = TURNS[0][:8]  # two turns with one prompt, which is read once
READ = [[0, 1], [None, 3], [2, 4]]  # turns whose prompts share a line
SLOTS, COLUMNS, CHUNK = 3, 16, 3
# Which turns enter which slots, and how many tokens every slot is then fed.
ROUNDS = [({0: 0, 2: 1}, 3), ({1: 2}, 1), ({}, 2), ({2: 4}, 3), ({1: 5, 0: 3}, 3), ({}, 1)]


def served(model, weights):
    """Number of a turn -> the states of its last prompt token and of all tokens it was fed."""
    tokens, lengths = packed([t[:n] for t, n in zip(TURNS, PROMPTS)], READ, 10)
    last, prompts = jax.jit(model.prefill)(weights, tokens, lengths)
    starts = np.cumsum(lengths, axis=1) - lengths
    place = {n: (l, m) for l, line in enumerate(READ) for m, n in enumerate(line)} | {5: (0, 0)}
    cache = empty_cache(model.config, SLOTS, COLUMNS, recent=CHUNK)
    states, held = {}, [None] * SLOTS
    step, into, moved = jax.jit(model.step), jax.jit(enter), jax.jit(commit)
    for entering, steps in ROUNDS:
        where = [place[turn] for turn in entering.values()]
        cache = into(
            cache,
            prompts,
            slot=jnp.array([*entering, SLOTS], jnp.int32),  # the last one goes nowhere
            line=jnp.array([l for l, _ in where] + [1], jnp.int32),
            start=jnp.array([starts[p] for p in where] + [3], jnp.int32),
            length=jnp.array([lengths[p] for p in where] + [7], jnp.int32),
        )
        for slot, turn in entering.items():
            held[slot] = turn
            states[turn] = [last[place[turn]]]
        for _ in range(steps):
            fed = [next_token(turn, states) for turn in held]
            hidden, cache = step(weights, jnp.array(fed, jnp.int32), cache)
            for slot, turn in enumerate(held):
                if turn is not None:
                    states[turn].append(hidden[slot])
        cache = moved(cache)
        assert int(cache.written) == 0
    return states


def next_token(turn, states):
    """What a slot is fed; anything if it has no turn or the turn is over."""
    at = 0 if turn is None else PROMPTS[turn] + len(states[turn]) - 1
    return 7 if turn is None or at >= SIZES[turn] else TURNS[turn][at]


def assert_states_are_those_of_the_whole(model, params, weights):
    lines = each_alone(len(TURNS))
    tokens, lengths = packed(TURNS, lines, max(SIZES))
    whole = by_turn(jax.jit(model.hidden)(params, tokens, lengths), lines, lengths)
    for turn, states in served(model, weights).items():
        want = whole[turn][PROMPTS[turn] - 1 :][: len(states)]
        np.testing.assert_allclose(np.stack(states)[: len(want)], want, atol=5e-6)


def integers(config, folder):
    """The parameters as a teacher kept in int8 has them."""
    save_hf(folder, config, loud_params(config))
    mesh = make_mesh({}, np.array(jax.devices()[:1]))
    put = functools.partial(param_shardings, axes=AXES, rules=RULES, mesh=mesh)
    return load_sharded(folder, config, put, dtype="int8")


def loud_adapters(config):
    model = lora.adapted(build(config), rank=2, alpha=4.0)
    shapes, rng = jax.eval_shape(model.init, jax.random.key(0))["lora"], np.random.default_rng(0)
    loud = jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape).astype(np.float32), shapes)
    return model, model.join(loud, loud_params(config))


@pytest.mark.parametrize("family", FAMILIES)
def test_slots_play_what_is_read(family):
    model, params = build(FAMILIES[family]), loud_params(FAMILIES[family])
    assert_states_are_those_of_the_whole(model, params, model.serve(params))


def test_a_single_layer():
    config = dataclasses.replace(QWEN3, num_layers=1)
    params = loud_params(config)
    assert_states_are_those_of_the_whole(build(config), params, build(config).serve(params))


def test_adapters():
    model, params = loud_adapters(QWEN3)
    assert_states_are_those_of_the_whole(model, params, model.serve(params))


@pytest.mark.parametrize(
    ("family", "storage"), [("qwen2", "float32"), ("qwen3", "int8"), ("qwen3_moe", "int8")]
)
def test_matrices_joined_into_one_change_nothing(family, storage, tmp_path, monkeypatch):
    config = FAMILIES[family]
    model = build(config)
    params = integers(config, tmp_path / "m") if storage == "int8" else loud_params(config)
    with monkeypatch.context() as patch:
        patch.setattr(transformer, "kernel_for", lambda *_: "cudnn")
        weights = model.serve(params)
    assert set(weights["blocks"][0]["attn"]) >= {"qkv", "o"}
    assert ("gate_up" in weights["blocks"][0].get("mlp", {})) == (not config.num_experts)
    assert_states_are_those_of_the_whole(model, params, weights)


def test_weights_are_cast_once_but_for_router_and_norms():
    model = build(dataclasses.replace(FAMILIES["qwen3_moe"], dtype="bfloat16"))
    weights = model.serve(loud_params(model.config))
    block = weights["blocks"][1]
    assert len(weights["blocks"]) == 3
    assert model.head(weights).dtype == block["moe"]["gate"]["kernel"].dtype == jnp.bfloat16
    assert (
        block["moe"]["router"]["kernel"].dtype == block["attn_norm"]["scale"].dtype == jnp.float32
    )
