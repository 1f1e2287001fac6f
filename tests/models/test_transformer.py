"""The decoder against itself: padding, tails, caches, remat and precision change nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atod_jax.models import ModelConfig, build
from atod_jax.models.transformer import empty_cache, grow_cache

CONFIG = ModelConfig(
    vocab_size=50,
    hidden_size=24,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    intermediate_size=32,
    rope_theta=1e4,
    rms_eps=1e-6,
    tie_embeddings=True,
)


@functools.cache
def loud_params(config: ModelConfig):
    """Random parameters large enough that attention is far from uniform and norms from one."""
    rng = np.random.default_rng(0)

    def one(path, x):
        noise = 0.3 * rng.standard_normal(x.shape).astype(np.float32)
        return 1 + noise if path[-1].key == "scale" else noise

    shapes = jax.eval_shape(build(config).init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(one, shapes)


def make_tokens(n: int, l: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, (n, l)).astype(np.int32)


def left_valid(lengths: list[int], columns: int) -> np.ndarray:
    return np.arange(columns)[None, :] >= columns - np.array(lengths)[:, None]


@functools.cache
def hidden_fn(config: ModelConfig):
    return jax.jit(build(config).hidden, static_argnames="tail")


MODEL = build(CONFIG)
PARAMS = loud_params(CONFIG)


def forward(tokens, valid, tail, config=CONFIG):
    hidden, _ = hidden_fn(config)(loud_params(config), tokens, valid, tail=tail)
    return np.asarray(hidden)


@functools.partial(jax.jit, static_argnums=0)
def token_loss(model, params, tokens, valid):
    """Cross-entropy on the last four columns of the rows whose last column is valid."""
    hidden, _ = model.hidden(params, tokens[:, :-1], valid[:, :-1], tail=4)
    logp = jax.nn.log_softmax(jnp.einsum("nrd,vd->nrv", hidden, model.head(params)))
    picked = jnp.take_along_axis(logp, tokens[:, -4:, None], axis=-1)[..., 0]
    return -jnp.sum(jnp.where(valid[:, -1:], picked, 0.0))


token_grad = jax.jit(jax.grad(token_loss, argnums=1), static_argnums=0)


@pytest.mark.parametrize("padding", [1, 7])
def test_left_padding_changes_nothing(padding):
    tokens = make_tokens(2, 9)
    plain = forward(tokens, np.ones((2, 9), bool), 9)
    junk = make_tokens(2, padding, seed=5)
    valid = left_valid([9, 9], 9 + padding)
    padded = forward(np.concatenate([junk, tokens], axis=1), valid, 9)
    np.testing.assert_allclose(padded, plain, atol=2e-6)


def test_right_padding_and_later_tokens_change_nothing_before_them():
    tokens = make_tokens(2, 10)
    valid = np.ones((2, 10), bool)
    before = forward(tokens, valid, 10)
    tokens[:, 6:] = (tokens[:, 6:] + 1) % CONFIG.vocab_size
    later = forward(tokens, valid, 10)
    np.testing.assert_array_equal(later[:, :6], before[:, :6])
    assert np.abs(later - before)[:, 6:].min(axis=-1).max() > 0
    valid[:, 6:] = False
    np.testing.assert_array_equal(forward(tokens, valid, 10)[:, :6], before[:, :6])


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("tail", [1, 4])
def test_tail_equals_the_end_of_the_full_forward(layers, tail):
    config = dataclasses.replace(CONFIG, num_layers=layers)
    tokens, valid = make_tokens(3, 8), left_valid([8, 5, 2], 8)
    whole = forward(tokens, valid, 8, config)
    part = forward(tokens, valid, tail, config)
    assert part.shape == (3, tail, CONFIG.hidden_size)
    keep = valid[:, -tail:]
    np.testing.assert_allclose(part[keep], whole[:, -tail:][keep], atol=2e-6)


@pytest.mark.parametrize("layers", [1, 3])
def test_decoding_through_the_cache_equals_the_full_forward(layers):
    config = dataclasses.replace(CONFIG, num_layers=layers)
    step, params = hidden_fn(config), loud_params(config)
    tokens, valid = make_tokens(3, 12), left_valid([12, 9, 7], 12)
    whole = forward(tokens, valid, 6, config)
    out, cache = step(params, tokens[:, :7], valid[:, :7], tail=1, cache=empty_cache(config, 3, 7))
    pieces, cache = [out], grow_cache(cache, 8)
    for t in range(7, 12):
        column = slice(t, t + 1)
        out, cache = step(params, tokens[:, column], valid[:, column], tail=1, cache=cache)
        pieces.append(out)
    assert int(cache.index) == 12
    np.testing.assert_array_equal(cache.valid[:, :12], valid)
    assert not cache.valid[:, 12:].any()
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, atol=3e-6)


def test_several_columns_at_once_may_follow_a_cache():
    tokens, valid = make_tokens(2, 11), left_valid([11, 6], 11)
    step, cache = hidden_fn(CONFIG), empty_cache(CONFIG, 2, 11)
    _, cache = step(PARAMS, tokens[:, :7], valid[:, :7], tail=1, cache=cache)
    part, _ = step(PARAMS, tokens[:, 7:], valid[:, 7:], tail=4, cache=cache)
    np.testing.assert_allclose(part, forward(tokens, valid, 4), atol=3e-6)


def test_fully_padded_rows_stay_finite_and_take_no_part():
    tokens = make_tokens(3, 9)
    valid = left_valid([9, 0, 5], 9)
    assert np.isfinite(forward(tokens, valid, 9)).all()
    grad = token_grad(MODEL, PARAMS, tokens, valid)
    alone = token_grad(MODEL, PARAMS, tokens[::2], valid[::2])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), grad, alone)


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_no_gradient(remat):
    tokens, valid = make_tokens(2, 9), left_valid([9, 6], 9)
    rebuilt = build(dataclasses.replace(CONFIG, remat=remat))
    want = token_grad(MODEL, PARAMS, tokens, valid)
    got = token_grad(rebuilt, PARAMS, tokens, valid)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)


def test_remat_saves_what_it_promises():
    """The number of saved residuals falls from none to dots to full."""
    tokens, valid = make_tokens(2, 9), left_valid([9, 6], 9)

    def saved(remat: str) -> int:
        model = build(dataclasses.replace(CONFIG, remat=remat))
        _, pull = jax.vjp(lambda p: token_loss(model, p, tokens, valid), PARAMS)
        return sum(x.size for x in jax.tree.leaves(pull))

    assert saved("full") < saved("dots") < saved("none")


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_reach_every_parameter(tied):
    config = dataclasses.replace(CONFIG, tie_embeddings=tied)
    model, params = build(config), loud_params(config)
    tokens, valid = make_tokens(2, 9), left_valid([9, 6], 9)
    grad = token_grad(model, params, tokens, valid)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grad):
        per_layer = np.asarray(leaf if path[0].key == "layers" else leaf[None])
        norms = np.linalg.norm(per_layer.reshape(per_layer.shape[0], -1), axis=1)
        assert (norms > 1e-4).all(), path


def test_gradient_is_the_finite_difference():
    tokens, valid = make_tokens(2, 9), left_valid([9, 6], 9)
    grad = token_grad(MODEL, PARAMS, tokens, valid)
    rng = np.random.default_rng(7)
    direction = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), PARAMS)

    def along(step: float) -> float:
        moved = jax.tree.map(lambda p, d: p + step * d, PARAMS, direction)
        return float(token_loss(MODEL, moved, tokens, valid))

    want = (along(1e-3) - along(-1e-3)) / 2e-3
    got = sum(float(np.vdot(g, d)) for g, d in zip(*map(jax.tree.leaves, (grad, direction))))
    assert got == pytest.approx(want, rel=1e-2)


def test_bfloat16_computes_in_bfloat16_near_float32():
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    tokens, valid = make_tokens(2, 9), left_valid([9, 6], 9)
    got, _ = hidden_fn(config)(PARAMS, tokens, valid, tail=3)
    assert got.dtype == jnp.bfloat16
    assert build(config).head(PARAMS).dtype == jnp.bfloat16
    error = np.asarray(got, np.float32) - forward(tokens, valid, 3)
    assert 0 < np.sqrt(np.mean(error**2)) < 0.05


def test_init_shapes_and_scale():
    config = dataclasses.replace(CONFIG, tie_embeddings=False, vocab_size=400)
    model = build(config)
    params = jax.jit(model.init)(jax.random.key(0))
    assert params["layers"]["attn"]["q"]["kernel"].shape == (2, 24, 4, 6)
    assert params["last"]["attn"]["o"]["kernel"].shape == (4, 6, 24)
    assert model.head(params).shape == (400, 24)
    assert float(jnp.std(params["head"]["embedding"])) == pytest.approx(0.02, rel=0.05)
    first, second = params["layers"]["mlp"]["up"]["kernel"]
    assert not jnp.array_equal(first, second)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_equal_configs_share_one_model():
    assert build(dataclasses.replace(CONFIG)) is MODEL
    assert hash(MODEL) == hash(build(dataclasses.replace(CONFIG)))


def test_ids_outside_the_vocabulary_are_loud():
    tokens = make_tokens(1, 4)
    tokens[0, 1] = CONFIG.vocab_size
    assert np.isnan(forward(tokens, np.ones((1, 4), bool), 1)).all()


@pytest.mark.parametrize("tail", [0, 5])
def test_tail_outside_the_columns_is_an_error(tail):
    with pytest.raises(ValueError, match=f"tail={tail}.*4 columns"):
        forward(make_tokens(1, 4), np.ones((1, 4), bool), tail)


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_layers", 0), ("num_kv_heads", 3), ("head_dim", 5), ("remat", "some"), ("dtype", "f16")],
)
def test_bad_configs_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(CONFIG, **{field: value})
