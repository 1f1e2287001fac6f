"""Gradients and shardings of every family; the mixture of experts against a plain sum."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import FAMILIES, loud_params, random_lines, token_loss

from atod_jax.models import AXES, build, families
from atod_jax.models.families import config_from_hf, config_to_hf, of
from atod_jax.models.moe import Moe, mixture, route
from atod_jax.sharding import RULES, make_mesh, param_shardings, to_global

each_family = pytest.mark.parametrize("family", FAMILIES)


@functools.partial(jax.jit, static_argnums=0)
def loss(config, params, tokens, lengths):
    return token_loss(build(config), params, tokens, lengths) / tokens.size


value_and_grad = jax.jit(jax.value_and_grad(loss, argnums=1), static_argnums=0)


def test_every_family_has_a_config_here():
    assert set(FAMILIES) == set(families.FAMILIES)
    for name, config in FAMILIES.items():
        assert of(config).model_type == name
        assert config_from_hf(config_to_hf(config, dtype="float32")) == config
    with pytest.raises(ValueError, match=r"qkv_bias.*no published family"):
        of(dataclasses.replace(FAMILIES["qwen3"], qkv_bias=True))


@each_family
def test_gradients_are_finite_differences_and_reach_every_parameter(family):
    config, (tokens, lengths) = FAMILIES[family], random_lines()
    params = loud_params(config)
    _, grad = value_and_grad(config, params, tokens, lengths)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grad):
        per_layer = np.asarray(leaf if path[0].key == "layers" else leaf[None])
        norms = np.linalg.norm(per_layer.reshape(per_layer.shape[0], -1), axis=1)
        assert (norms > 1e-6).all(), path
    rng = np.random.default_rng(7)
    direction = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), params)

    def along(step: float) -> float:
        moved = jax.tree.map(lambda p, d: p + step * d, params, direction)
        return float(loss(config, moved, tokens, lengths))

    want = (along(1e-4) - along(-1e-4)) / 2e-4
    got = sum(float(np.vdot(g, d)) for g, d in zip(*map(jax.tree.leaves, (grad, direction))))
    assert got == pytest.approx(want, rel=2e-2, abs=2e-3)


@pytest.mark.parametrize(
    ("family", "mesh"),
    [
        ("qwen2", {"data": 4, "tensor": 2}),
        ("qwen3_moe", {"data": 2, "expert": 4}),
        ("qwen3_moe", {"fsdp": 2, "tensor": 2, "expert": 2}),
    ],
)
def test_sharded_equals_single_device(family, mesh):
    config, (tokens, lengths), mesh = FAMILIES[family], random_lines(), make_mesh(mesh)
    params = loud_params(config)
    want, want_grad = value_and_grad(config, params, tokens, lengths)
    placed = jax.device_put(params, param_shardings(params, AXES, RULES, mesh=mesh))
    with jax.set_mesh(mesh):
        got, grad = value_and_grad(config, placed, *to_global((tokens, lengths), mesh))
    assert float(got) == pytest.approx(float(want), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6), grad, want_grad)
    if config.num_experts:
        gate = placed["layers"]["moe"]["gate"]["kernel"]
        assert gate.addressable_shards[0].data.shape[1] == 4 // mesh.shape["expert"]


def moe_layer():
    """A layer of four experts, its parameters, and eight rows."""
    layer, rng = Moe(4, 2, 24, True), np.random.default_rng(0)
    x = rng.standard_normal((8, 9, 16)).astype(np.float32)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda s: 0.3 * rng.standard_normal(s.shape).astype(np.float32), shapes)
    return layer, params, x


def test_devices_compute_their_own_rows_with_their_own_experts():
    """One sum at the end is all they exchange."""
    layer, params, x = moe_layer()
    mesh = make_mesh({"data": 2, "expert": 4})
    places = param_shardings({"last": {"moe": params}}, AXES, RULES, mesh=mesh)["last"]["moe"]
    apply = jax.jit(lambda p, x: layer.apply({"params": p}, x))
    alone = apply.lower(params, x).compile()
    with jax.set_mesh(mesh):
        spread = apply.lower(jax.device_put(params, places), to_global(x, mesh)).compile()
    program = spread.as_text()
    assert "all-reduce" in program
    assert not any(op in program for op in ("all-gather", "all-to-all", "collective-permute"))
    assert spread.cost_analysis()["flops"] < alone.cost_analysis()["flops"] / 4


def test_rows_that_do_not_divide_over_the_devices_are_computed_all_the_same():
    layer, params, x = moe_layer()
    apply = jax.jit(lambda x: layer.apply({"params": params}, x))
    want = apply(x[:3])
    with jax.set_mesh(make_mesh({"data": 2, "expert": 4})):
        np.testing.assert_allclose(apply(x[:3]), want, atol=1e-5)


def naive_mixture(x, logits, kernels, *, per_token: int, normalize: bool) -> np.ndarray:
    """Token by token and expert by expert, in float64."""
    probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    out = np.zeros_like(x)
    for t, row in enumerate(x):
        chosen = np.argsort(-probs[t], kind="stable")[:per_token]
        total = probs[t, chosen].sum() if normalize else 1.0
        for e in chosen:
            gate = row @ kernels["gate"][e]
            wide = gate / (1 + np.exp(-gate)) * (row @ kernels["up"][e])
            out[t] += probs[t, e] / total * (wide @ kernels["down"][e])
    return out


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("per_token", [1, 3, 5])
def test_mixture_is_the_plain_sum_over_experts(normalize, per_token):
    rng = np.random.default_rng(0)
    x, logits = rng.standard_normal((7, 6)), rng.standard_normal((7, 5))
    logits[:, 4] -= 20  # an expert without tokens, unless all are asked
    kernels = {
        name: rng.standard_normal(shape)
        for name, shape in {"gate": (5, 6, 9), "up": (5, 6, 9), "down": (5, 9, 6)}.items()
    }
    weights, chosen = route(jnp.array(logits, jnp.float32), per_token, normalize=normalize)
    single = {name: jnp.array(kernel, jnp.float32) for name, kernel in kernels.items()}
    got = mixture(jnp.array(x, jnp.float32), weights, chosen, kernels=single)
    want = naive_mixture(x, logits, kernels, per_token=per_token, normalize=normalize)
    np.testing.assert_allclose(got, want, atol=2e-4)


def test_of_equal_experts_the_lower_number_is_asked():
    logits = jnp.array([[0.0, 1.0, 1.0, 1.0], [2.0, 1.0, 2.0, 1.0]])
    _, chosen = route(logits, 2, normalize=True)
    np.testing.assert_array_equal(chosen, [[1, 2], [0, 2]])


def test_the_router_stays_in_float32():
    """Logits that bfloat16 would round to one value still tell experts apart."""
    moe = Moe(2, 1, 4, True)
    x = jnp.ones((1, 1, 8), jnp.bfloat16)
    params = moe.init(jax.random.key(0), x)["params"]
    params["router"]["kernel"] = jnp.full((8, 2), 1.0).at[:, 1].add(1e-4)
    params["down"]["kernel"] = params["down"]["kernel"].at[0].set(0.0)
    assert jnp.abs(moe.apply({"params": params}, x)).max() > 0
