"""The decoder against itself: padding, tails, caches, remat and precision change nothing."""

import dataclasses

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


def loud_params(config: ModelConfig, seed: int = 0):
    """Random parameters large enough that attention is far from uniform and norms from one."""
    params = build(config).init(jax.random.key(seed))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noise = [0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)]
    return jax.tree.unflatten(tree, [x + e for x, e in zip(leaves, noise)])


def make_tokens(n: int, l: int, seed: int = 0) -> jax.Array:
    return jax.random.randint(jax.random.key(seed), (n, l), 0, CONFIG.vocab_size)


def left_valid(lengths: list[int], columns: int) -> jax.Array:
    return jnp.arange(columns)[None, :] >= columns - jnp.array(lengths)[:, None]


MODEL = build(CONFIG)
PARAMS = loud_params(CONFIG)


def forward(tokens, valid, tail):
    return np.asarray(MODEL.hidden(PARAMS, tokens, valid, tail=tail)[0])


@pytest.mark.parametrize("padding", [1, 7])
def test_left_padding_changes_nothing(padding):
    tokens = make_tokens(2, 9)
    plain = forward(tokens, jnp.ones((2, 9), bool), 9)
    junk = make_tokens(2, padding, seed=5)
    valid = left_valid([9, 9], 9 + padding)
    padded = forward(jnp.concatenate([junk, tokens], axis=1), valid, 9)
    np.testing.assert_allclose(padded, plain, atol=2e-6)


def test_right_padding_and_later_tokens_change_nothing_before_them():
    tokens = make_tokens(2, 10)
    valid = jnp.ones((2, 10), bool)
    before = forward(tokens, valid, 10)[:, :6]
    changed = forward(tokens.at[:, 6:].add(1) % CONFIG.vocab_size, valid.at[:, 6:].set(False), 10)
    np.testing.assert_array_equal(changed[:, :6], before)
    assert np.abs(changed[:, 6:]).max() < np.inf


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("tail", [1, 4])
def test_tail_equals_the_end_of_the_full_forward(layers, tail):
    config = dataclasses.replace(CONFIG, num_layers=layers)
    model, params = build(config), loud_params(config)
    tokens, valid = make_tokens(3, 8), left_valid([8, 5, 2], 8)
    whole, _ = model.hidden(params, tokens, valid, tail=8)
    part, _ = model.hidden(params, tokens, valid, tail=tail)
    assert part.shape == (3, tail, CONFIG.hidden_size)
    keep = np.asarray(valid)[:, -tail:]
    np.testing.assert_allclose(np.asarray(part)[keep], np.asarray(whole)[:, -tail:][keep], atol=2e-6)


@pytest.mark.parametrize("layers", [1, 3])
def test_decoding_through_the_cache_equals_the_full_forward(layers):
    config = dataclasses.replace(CONFIG, num_layers=layers)
    model, params = build(config), loud_params(config)
    tokens, valid = make_tokens(3, 12), left_valid([12, 9, 7], 12)
    whole, _ = model.hidden(params, tokens, valid, tail=6)
    step = jax.jit(lambda t, v, c: model.hidden(params, t, v, tail=1, cache=c))
    out, cache = step(tokens[:, :7], valid[:, :7], empty_cache(config, 3, 7))
    pieces, cache = [out], grow_cache(cache, 8)
    for t in range(7, 12):
        out, cache = step(tokens[:, t : t + 1], valid[:, t : t + 1], cache)
        pieces.append(out)
    assert int(cache.index) == 12
    np.testing.assert_array_equal(cache.valid[:, :12], valid)
    assert not cache.valid[:, 12:].any()
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, atol=3e-6)


def test_several_columns_at_once_may_follow_a_cache():
    tokens, valid = make_tokens(2, 11), left_valid([11, 6], 11)
    whole, _ = MODEL.hidden(PARAMS, tokens, valid, tail=4)
    _, cache = MODEL.hidden(
        PARAMS, tokens[:, :7], valid[:, :7], tail=1, cache=empty_cache(CONFIG, 2, 11)
    )
    part, _ = MODEL.hidden(PARAMS, tokens[:, 7:], valid[:, 7:], tail=4, cache=cache)
    np.testing.assert_allclose(part, whole, atol=3e-6)


def token_loss(model, params, tokens, valid):
    hidden, _ = model.hidden(params, tokens[:, :-1], valid[:, :-1], tail=4)
    logp = jax.nn.log_softmax(jnp.einsum("nrd,vd->nrv", hidden, model.head(params)))
    picked = jnp.take_along_axis(logp, tokens[:, -4:, None], axis=-1)[..., 0]
    return -jnp.sum(jnp.where(valid[:, -1:], picked, 0.0))


def test_fully_padded_rows_stay_finite_and_take_no_part():
    tokens = make_tokens(3, 9)
    valid = left_valid([9, 0, 5], 9)
    assert np.isfinite(forward(tokens, valid, 9)).all()
    grad = jax.grad(lambda p: token_loss(MODEL, p, tokens, valid))(PARAMS)
    alone = jax.grad(lambda p: token_loss(MODEL, p, tokens[::2], valid[::2]))(PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), grad, alone)


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_no_gradient(remat):
    tokens, valid = make_tokens(2, 9), left_valid([9, 6], 9)
    rebuilt = build(dataclasses.replace(CONFIG, remat=remat))
    want = jax.grad(lambda p: token_loss(MODEL, p, tokens, valid))(PARAMS)
    got = jax.grad(lambda p: token_loss(rebuilt, p, tokens, valid))(PARAMS)
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
    grad = jax.grad(lambda p: token_loss(model, p, tokens, valid))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grad):
        per_layer = leaf if path[0].key == "layers" else leaf[None]
        norms = jnp.linalg.norm(per_layer.reshape(per_layer.shape[0], -1), axis=1)
        assert (norms > 1e-4).all(), path


def test_gradient_is_the_finite_difference():
    tokens, valid = make_tokens(2, 9), left_valid([9, 6], 9)
    grad = jax.grad(lambda p: token_loss(MODEL, p, tokens, valid))(PARAMS)
    keys = iter(jax.random.split(jax.random.key(7), len(jax.tree.leaves(PARAMS))))
    direction = jax.tree.map(lambda x: jax.random.normal(next(keys), x.shape), PARAMS)

    def along(step: float) -> float:
        moved = jax.tree.map(lambda p, d: p + step * d, PARAMS, direction)
        return float(token_loss(MODEL, moved, tokens, valid))

    want = (along(1e-3) - along(-1e-3)) / 2e-3
    got = sum(float(jnp.vdot(g, d)) for g, d in zip(*map(jax.tree.leaves, (grad, direction))))
    assert got == pytest.approx(want, rel=1e-2)


def test_bfloat16_computes_in_bfloat16_near_float32():
    half = build(dataclasses.replace(CONFIG, dtype="bfloat16"))
    tokens, valid = make_tokens(2, 9), left_valid([9, 6], 9)
    got, _ = half.hidden(PARAMS, tokens, valid, tail=3)
    assert got.dtype == jnp.bfloat16
    assert half.head(PARAMS).dtype == jnp.bfloat16
    error = np.asarray(got, np.float32) - forward(tokens, valid, 3)
    assert 0 < np.sqrt(np.mean(error**2)) < 0.05


def test_init_shapes_and_scale():
    config = dataclasses.replace(CONFIG, tie_embeddings=False, vocab_size=400)
    model = build(config)
    params = model.init(jax.random.key(0))
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
    tokens = make_tokens(1, 4).at[0, 1].set(CONFIG.vocab_size)
    assert np.isnan(forward(tokens, jnp.ones((1, 4), bool), 1)).all()


@pytest.mark.parametrize("tail", [0, 5])
def test_tail_outside_the_columns_is_an_error(tail):
    with pytest.raises(ValueError, match=f"tail={tail}.*4 columns"):
        forward(make_tokens(1, 4), jnp.ones((1, 4), bool), tail)


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_layers", 0), ("num_kv_heads", 3), ("head_dim", 5), ("remat", "some"), ("dtype", "f16")],
)
def test_bad_configs_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(CONFIG, **{field: value})
