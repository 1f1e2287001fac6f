"""Meshes, the two sharding tables, and a model that gives the same numbers on eight devices."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from acting import act_in_order
from jax.sharding import PartitionSpec as P
from tiny_models import FAMILIES, random_lines, token_loss

from atod_jax.device.policy import Policy
from atod_jax.device.sampling import SamplingConfig
from atod_jax.models import AXES, build
from atod_jax.sharding import (
    RULES,
    across_slices,
    batch_sharding,
    local_shards,
    make_mesh,
    param_shardings,
    slices_of,
    to_global,
    to_local,
)

CONFIG = FAMILIES["qwen3"]
MODEL = build(CONFIG)
ABSTRACT = jax.eval_shape(MODEL.init, jax.random.key(0))


def make_params():
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: 0.5 * rng.standard_normal(x.shape).astype(np.float32), ABSTRACT)


def names(tree):
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(k.key for k in path): leaf for path, leaf in flat}


def test_mesh_has_all_axes_and_defaults_to_one():
    mesh = make_mesh({"data": 4, "tensor": 2})
    assert dict(mesh.shape) == {"data": 4, "fsdp": 1, "tensor": 2, "expert": 1}
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
    assert local_shards(mesh) == 4


@dataclasses.dataclass(frozen=True)
class Chip:
    """What meshes look at in a device."""

    id: int
    slice_index: int
    process_index: int
    coords: tuple[int, int, int]  # in its slice
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "made up"


CHIPS = [Chip(i, i // 8, i // 4, (i % 2, i // 2 % 4, 0)) for i in range(16)]  # two slices of 2 x 4


@pytest.mark.parametrize(("sizes", "outer"), [((2, 4, 2, 1), 0), ((1, 8, 2, 1), 1)])
def test_slices_are_split_over_rows(sizes, outer):
    assert slices_of(CHIPS) == 2
    placed = across_slices(sizes, CHIPS)
    assert placed.shape == sizes
    assert len(set(placed.flat)) == 16
    halves = np.split(np.vectorize(lambda chip: chip.slice_index)(placed), 2, axis=outer)
    assert [set(half.flat) for half in halves] == [{0}, {1}]


def test_slices_that_split_no_rows_are_refused():
    with pytest.raises(ValueError, match=r"mesh\.data or mesh\.fsdp a multiple of 2"):
        across_slices((1, 1, 16, 1), CHIPS)
    assert slices_of(jax.devices()) == 1


@pytest.mark.parametrize("shape", [{}, {"data": 3}, {"data": 16}, {"data": -8, "tensor": -1}])
def test_mesh_must_use_every_device(shape):
    with pytest.raises(ValueError, match="there are 8"):
        make_mesh(shape)


def test_unknown_mesh_axis():
    with pytest.raises(ValueError, match="model"):
        make_mesh({"model": 8})


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_matches_exactly_one_pattern(layers, tied):
    config = dataclasses.replace(CONFIG, num_layers=layers, tie_embeddings=tied)
    abstract = jax.eval_shape(build(config).init, jax.random.key(0))
    for name, leaf in names(abstract).items():
        found = [axes for pattern, axes in AXES if re.fullmatch(pattern, name)]
        assert len(found) == 1, name
        assert len(found[0]) == leaf.ndim, name


def test_specs_follow_the_tables():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    specs = {k: v.spec for k, v in names(param_shardings(ABSTRACT, AXES, RULES, mesh=mesh)).items()}
    assert specs["embed/embedding"] == P("tensor", "fsdp")
    assert specs["layers/attn/q/kernel"] == P(None, "fsdp", "tensor", None)
    assert specs["last/attn/o/kernel"] == P("tensor", None, "fsdp")
    assert specs["last/mlp/down/kernel"] == P("tensor", "fsdp")
    assert specs["norm/scale"] == P(None)


@pytest.mark.parametrize(
    ("axes", "rules", "message"),
    [
        (AXES[1:], RULES, r"embed/embedding must match one axes pattern, matches \[\]"),
        ((*AXES, (r"norm/.*", (None,))), RULES, r"norm/scale must match one .*'norm/scale'"),
        (((r".*", ("embed",)),), RULES, r"has shape .* but logical axes"),
        (AXES, {}, r"no sharding rule for the logical axes \['embed', 'vocab'\]"),
        (AXES, {**RULES, "layers": "data"}, r"layers/attn/k/kernel.*'layers' of size 2 is not"),
        (AXES, {**RULES, "mlp": "vocab"}, r"rule mlp -> vocab"),
        (AXES, {**RULES, "embed": "tensor"}, r"uses a mesh axis twice"),
    ],
)
def test_wrong_tables_are_refused(axes, rules, message):
    mesh = make_mesh({"data": 4, "tensor": 2})
    with pytest.raises(ValueError, match=message):
        param_shardings(ABSTRACT, axes, rules, mesh=mesh)


def test_to_global_splits_rows_and_back():
    mesh = make_mesh({"data": 4, "tensor": 2})
    tree = {"x": np.arange(24, dtype=np.int32).reshape(8, 3), "n": np.float32(2.0)}
    placed = to_global(tree, mesh)
    assert placed["x"].sharding == batch_sharding(mesh)
    assert {s.data.shape for s in placed["x"].addressable_shards} == {(2, 3)}
    assert placed["n"].sharding.is_fully_replicated
    np.testing.assert_array_equal(to_local(placed["x"]), tree["x"])
    with pytest.raises(ValueError, match=r"6 rows are not divisible by the 4 .*pad them to 8"):
        to_global({"x": np.zeros((6, 2))}, mesh)


def loss(params, tokens, lengths):
    """The mean over columns, and the states of some of them."""
    pick = jnp.broadcast_to(jnp.array([[0, 3, 4, 7]]), (8, 4))
    hidden = MODEL.hidden(params, tokens, lengths, pick=pick)
    return token_loss(MODEL, params, tokens, lengths) / tokens.size, hidden


@pytest.mark.parametrize("shape", [{"data": 4, "tensor": 2}, {"data": 2, "fsdp": 4}])
def test_sharded_equals_single_device(shape):
    mesh, params = make_mesh(shape), make_params()
    tokens, lengths = random_lines()
    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (want, want_hidden), want_grad = step(params, tokens, lengths)
    placed = jax.device_put(params, param_shardings(ABSTRACT, AXES, RULES, mesh=mesh))
    assert len(placed["last"]["mlp"]["up"]["kernel"].sharding.device_set) == 8
    with jax.set_mesh(mesh):
        (got, hidden), grad = step(placed, *to_global((tokens, lengths), mesh))
    assert float(got) == pytest.approx(float(want), rel=1e-6)
    np.testing.assert_allclose(hidden, want_hidden, atol=5e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6), grad, want_grad)


def test_sharded_sampling_equals_single_device():
    mesh, params = make_mesh({"data": 4, "tensor": 2}), make_params()
    cfg = SamplingConfig(
        max_new_tokens=5, prompt_buckets=(8,), slots=16, eos_ids=(1,), pad_id=0, forbidden=(0,)
    )
    rng, rows = np.random.default_rng(2), [4, 9, 2, 0, 7]
    prompts = [rng.integers(2, 48, n).astype(np.int32) for n in (8, 3, 5, 1, 7)]
    want = act_in_order(Policy(MODEL, cfg), params, prompts, rows=rows)
    placed = jax.device_put(params, param_shardings(ABSTRACT, AXES, RULES, mesh=mesh))
    with jax.set_mesh(mesh):
        got = act_in_order(Policy(MODEL, cfg, mesh), placed, prompts, rows=rows)
    for a, b in zip(got, want):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_allclose(a.logp, b.logp, atol=5e-6)


def test_devices_split_rows_not_width():
    """A device that kept its slice of the width would compute the attention of every row."""
    mesh = make_mesh({"fsdp": 8})
    places = param_shardings(ABSTRACT, AXES, RULES, mesh=mesh)
    params = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), ABSTRACT, places
    )
    rows = batch_sharding(mesh)
    ints = [jax.ShapeDtypeStruct((8, n), jnp.int32, sharding=rows) for n in (6, 2, 4)]
    with jax.set_mesh(mesh):
        hidden = jax.jit(lambda p, t, n, pick: MODEL.hidden(p, t, n, pick=pick))
        compiled = hidden.lower(params, *ints).compile()
    assert compiled.output_shardings.shard_shape((8, 4, 16)) == (1, 4, 16)
