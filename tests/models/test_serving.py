"""Playing from a cache gives the states of reading the whole, whatever the slots do meanwhile."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from played_turns import pairs, whole
from tiny_models import FAMILIES, loud_params

from atod_jax.models import AXES, block, build, lora
from atod_jax.models.checkpoint_io import save_hf
from atod_jax.models.loading import load_sharded
from atod_jax.sharding import RULES, make_mesh, param_shardings

QWEN3 = FAMILIES["qwen3"]


def assert_states_are_those_of_the_whole(model, params, weights):
    for played, want in pairs(model, params, weights).values():
        np.testing.assert_allclose(played, want, atol=5e-6)


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
    want = whole(model, params)
    for turn, states in whole(model, model.serve(params)).items():
        np.testing.assert_allclose(states, want[turn], atol=5e-6)
    assert_states_are_those_of_the_whole(model, params, model.serve(params))


@pytest.mark.parametrize(
    ("family", "storage"), [("qwen2", "float32"), ("qwen3", "int8"), ("qwen3_moe", "int8")]
)
def test_matrices_joined_into_one_change_nothing(family, storage, tmp_path, monkeypatch):
    config = FAMILIES[family]
    model = build(config)
    params = integers(config, tmp_path / "m") if storage == "int8" else loud_params(config)
    with monkeypatch.context() as patch:
        patch.setattr(block, "kernel_for", lambda *_: "cudnn")
        weights = model.serve(params)
    assert set(weights["blocks"][0]["attn"]) >= {"qkv", "o"}
    assert ("gate_up" in weights["blocks"][0].get("mlp", {})) == (not config.num_experts)
    assert_states_are_those_of_the_whole(model, params, weights)
    want = whole(model, params)
    for turn, states in whole(model, weights).items():  # the weights of playing can be read with
        np.testing.assert_allclose(states, want[turn], atol=5e-6)


def test_weights_are_cast_once_but_for_router_and_norms():
    model = build(dataclasses.replace(FAMILIES["qwen3_moe"], dtype="bfloat16"))
    weights = model.serve(loud_params(model.config))
    block = weights["blocks"][1]
    assert len(weights["blocks"]) == 3
    assert model.head(weights).dtype == block["moe"]["gate"]["kernel"].dtype == jnp.bfloat16
    assert (
        block["moe"]["router"]["kernel"].dtype == block["attn_norm"]["scale"].dtype == jnp.float32
    )
