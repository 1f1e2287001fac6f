"""The decoder against itself: neighbours, padding, picks, remat and precision change nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import (
    FAMILIES,
    by_turn,
    each_alone,
    loud_params,
    make_turns,
    packed,
    token_loss,
    value_and_grad,
)

from atod_jax.models import attention, build
from atod_jax.models.layers import RMSNorm

CONFIG = dataclasses.replace(FAMILIES["qwen3"], tie_embeddings=True)
MODEL = build(CONFIG)
PARAMS = loud_params(CONFIG)
TURNS = make_turns([9, 1, 5, 13, 2, 4])
ALONE = each_alone(len(TURNS))
LINES = {
    "full": ([[3, 5], [0, 2, 1, 4]], 17),
    "two of three full": ([[0, 2], [3, 1], [5, 4]], 14),
    "empty places and an empty line": ([[None, 1, 3], [None], [2, None, 0], [5, 4, None]], 15),
}


def states(tokens, lengths, pick=None, model=MODEL):
    return np.asarray(hidden(model, loud_params(model.config), tokens, lengths, pick))


def hidden(model, params, tokens, lengths, pick):
    return jax.jit(model.hidden)(params, tokens, lengths, pick=pick)


@pytest.fixture(params=[256, 4], ids=lambda n: f"{n} queries")
def _blocks(request, monkeypatch):
    """Scores of all columns at once, or of four at a time."""
    monkeypatch.setattr(attention, "QUERIES", request.param)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("name", LINES)
def test_a_turn_depends_on_no_neighbour_order_or_padding(name):
    lines, columns = LINES[name]
    tokens, lengths = packed(TURNS, lines, columns)
    got = states(tokens, lengths)
    assert np.isfinite(got).all()
    alone = packed(TURNS, ALONE, 13)
    want = by_turn(states(*alone), ALONE, alone[1])
    for number, ours in by_turn(got, lines, lengths).items():
        np.testing.assert_allclose(ours, want[number], atol=3e-6)
    value, grad = value_and_grad(MODEL, PARAMS, tokens, lengths)
    want_value, want_grad = value_and_grad(MODEL, PARAMS, *alone)
    assert float(value) == pytest.approx(float(want_value), rel=1e-6)
    assert_trees_close(grad, want_grad)


def assert_trees_close(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), ours, theirs)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("layers", [1, 3])
def test_picked_columns_are_those_of_the_whole(layers):
    model = build(dataclasses.replace(CONFIG, num_layers=layers))
    tokens, lengths = packed(TURNS, *LINES["full"])
    whole = states(tokens, lengths, model=model)
    pick = np.random.default_rng(0).integers(0, 17, (2, 7)).astype(np.int32)
    got = states(tokens, lengths, pick, model=model)
    assert got.shape == (2, 7, CONFIG.hidden_size)
    np.testing.assert_allclose(got, np.take_along_axis(whole, pick[..., None], 1), atol=2e-6)


def test_later_tokens_change_nothing_before_them():
    tokens, lengths = packed(TURNS, *LINES["full"])
    before = states(tokens, lengths)
    tokens[:, 6:] = (tokens[:, 6:] + 1) % CONFIG.vocab_size
    later = states(tokens, lengths)
    np.testing.assert_array_equal(later[:, :6], before[:, :6])
    assert np.abs(later - before)[:, 6:].max(axis=-1).min() > 0


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_no_gradient_and_saves_what_it_promises(remat):
    tokens, lengths = packed(TURNS, *LINES["full"])
    rebuilt = build(dataclasses.replace(CONFIG, remat=remat))
    _, want = value_and_grad(MODEL, PARAMS, tokens, lengths)
    _, got = value_and_grad(rebuilt, PARAMS, tokens, lengths)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)

    def saved(remat: str) -> int:
        model = build(dataclasses.replace(CONFIG, remat=remat))
        _, pull = jax.vjp(lambda p: token_loss(model, p, tokens, lengths), PARAMS)
        return sum(x.size for x in jax.tree.leaves(pull))

    assert saved("full") <= saved(remat) < saved("none")
    assert saved("full") < saved("dots")


def test_bfloat16_computes_in_bfloat16_near_float32():
    model = build(dataclasses.replace(CONFIG, dtype="bfloat16"))
    tokens, lengths = packed(TURNS, *LINES["full"])
    got = hidden(model, PARAMS, tokens, lengths, None)
    assert got.dtype == model.head(PARAMS).dtype == jnp.bfloat16
    error = np.asarray(got, np.float32) - states(tokens, lengths)
    assert 0 < np.sqrt(np.mean(error**2)) < 0.05


def test_init_shapes_and_scale():
    model = build(dataclasses.replace(CONFIG, tie_embeddings=False, vocab_size=400))
    params = model.init(jax.random.key(0))
    assert params["layers"]["attn"]["q"]["kernel"].shape == (2, 16, 4, 8)
    assert params["last"]["attn"]["o"]["kernel"].shape == (4, 8, 16)
    assert model.head(params).shape == (400, 16)
    assert float(jnp.std(params["head"]["embedding"])) == pytest.approx(0.02, rel=0.05)
    first, second = params["layers"]["mlp"]["up"]["kernel"]
    assert not jnp.array_equal(first, second)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_equal_configs_share_one_model():
    assert build(dataclasses.replace(CONFIG)) is MODEL
    assert hash(MODEL) == hash(build(dataclasses.replace(CONFIG)))


def test_ids_outside_the_vocabulary_are_loud():
    tokens, lengths = packed(TURNS, *LINES["full"])
    tokens[0, 1] = CONFIG.vocab_size
    assert np.isnan(states(tokens, lengths)[0, 1:13]).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_layers", 0), ("num_kv_heads", 3), ("head_dim", 5), ("remat", "some"), ("dtype", "f16")],
)
def test_bad_configs_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(CONFIG, **{field: value})


def test_gradients_mapped_over_cotangents_are_those_of_each():
    """Some versions of XLA's CPU compiler mix them; `atod_jax/__init__.py` keeps them from it."""
    norm, draw = RMSNorm(1e-6), np.random.default_rng(0)
    x, several = (
        jnp.asarray(draw.normal(size=s), jnp.float32) for s in ((2640, 16), (2, 2640, 16))
    )
    params = {"params": {"scale": jnp.ones(16)}}

    def pull(cotangent):
        return jax.vjp(lambda x: norm.apply(params, x), x)[1](cotangent)[0]

    want = [jax.jit(pull)(one) for one in several]
    np.testing.assert_allclose(jax.jit(jax.vmap(pull))(several), want, rtol=1e-4, atol=1e-5)
