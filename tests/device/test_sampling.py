"""The sampler: its distribution, its log-probabilities, and what a draw may depend on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atod_jax.device.policy import Policy, row_bucket
from atod_jax.device.sampling import (
    CDF_BLOCK,
    SamplingConfig,
    generate,
    inverse_cdf,
    mask_logits,
    pick,
    truncate,
)
from atod_jax.models import ModelConfig, build

V, PAD, EOS = 30, 0, 1
CONFIG = ModelConfig(
    vocab_size=V,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    intermediate_size=24,
    rope_theta=1e4,
    rms_eps=1e-6,
    tie_embeddings=True,
)
MODEL = build(CONFIG)
CFG = SamplingConfig(
    max_new_tokens=6,
    prompt_buckets=(8, 12),
    max_rows=24,
    eos_ids=(EOS,),
    pad_id=PAD,
    forbidden=(PAD, 7),
)
KEY = jax.random.key(11)


@functools.cache
def make_params():
    """Parameters whose next-token distributions are neither flat nor peaked."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0))
    return jax.tree.map(lambda x: 0.4 * rng.standard_normal(x.shape).astype(np.float32), shapes)


def make_prompts(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(2, V, rng.integers(1, 9)).astype(np.int32) for _ in range(count)]


@functools.cache
def make_policy(cfg: SamplingConfig = CFG) -> Policy:
    return Policy(MODEL, cfg)


def full_logp(prompt: np.ndarray, action: np.ndarray, temperature: float) -> np.ndarray:
    """log softmax of the masked logits of one uncached forward pass over prompt + action."""
    tokens = np.concatenate([prompt, action])[None, :-1]
    valid = np.ones(tokens.shape, bool)
    hidden, _ = forward()(make_params(), tokens, valid, tail=len(action))
    logits = np.asarray(hidden[0] @ MODEL.head(make_params()).T, np.float64) / temperature
    logits[:, list(CFG.forbidden)] = -np.inf
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return logp


@functools.cache
def forward():
    return jax.jit(MODEL.hidden, static_argnames="tail")


def chi_square(counts: np.ndarray, probs: np.ndarray) -> float:
    """Pearson's statistic over its degrees of freedom, on the cells expected at least 5 times."""
    expected = counts.sum() * probs
    cells = expected >= 5
    assert counts[probs == 0].sum() == 0
    return float(((counts - expected)[cells] ** 2 / expected[cells]).sum() / (cells.sum() - 1))


# ------------------------------------------------------------------------------ one distribution


def draw(logits: np.ndarray, cfg: SamplingConfig, count: int = 40_000) -> np.ndarray:
    """Counts per id of `count` independent draws from one row of logits."""
    uniform = jax.random.uniform(jax.random.key(5), (count,))
    rows = jnp.broadcast_to(jnp.asarray(logits)[None], (count, len(logits)))
    token, _ = jax.jit(pick, static_argnames="cfg")(
        rows, uniform, temperature=cfg.temperature, cfg=cfg
    )
    return np.bincount(np.asarray(token), minlength=len(logits))


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    return e / e.sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_draws_follow_the_masked_tempered_softmax(temperature):
    logits = np.random.default_rng(1).standard_normal(V)
    want = logits / temperature
    want[list(CFG.forbidden)] = -np.inf
    counts = draw(logits, dataclasses.replace(CFG, temperature=temperature))
    assert chi_square(counts, softmax(want)) < 2.1  # the 0.999 quantile at 27 degrees of freedom


def test_top_k_and_top_p_keep_what_they_say():
    probs = np.array([0.02, 0.4, 0.05, 0.25, 0.08, 0.2])
    logits = np.log(probs)
    cfg = dataclasses.replace(CFG, forbidden=(), eos_ids=(0,))
    third = np.where(probs >= 0.2, probs, 0) / 0.85
    assert chi_square(draw(logits, dataclasses.replace(cfg, top_k=3)), third) < 4
    for top_p, kept in ((0.39, 1), (0.41, 2), (0.84, 3), (0.86, 4), (0.999, 6)):
        want = np.where(probs >= np.sort(probs)[-kept], probs, 0)
        counts = draw(logits, dataclasses.replace(cfg, top_p=top_p))
        assert (counts > 0).sum() == kept
        if kept > 1:
            assert chi_square(counts, want / want.sum()) < 4
    both = draw(logits, dataclasses.replace(cfg, top_k=3, top_p=0.7))
    assert (both > 0).tolist() == [False, True, False, True, False, False]  # 0.76 of 0.85


def test_truncation_does_not_change_the_log_probability():
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.2]]))
    cfg = dataclasses.replace(CFG, forbidden=(), eos_ids=(0,), top_k=1)
    token, logp = pick(logits, jnp.array([0.99]), temperature=cfg.temperature, cfg=cfg)
    assert int(token[0]) == 0
    assert float(logp[0]) == pytest.approx(np.log(0.5), abs=1e-6)


def test_truncate_keeps_ties():
    weights = jnp.array([[1.0, 2.0, 2.0, 0.5]])
    np.testing.assert_array_equal(truncate(weights, top_k=1, top_p=1.0)[0], [0, 2, 2, 0])
    np.testing.assert_array_equal(truncate(weights, top_k=0, top_p=0.3)[0], [0, 2, 2, 0])


@pytest.mark.parametrize("vocab", [5, CDF_BLOCK, 3 * CDF_BLOCK + 17])
def test_inverse_cdf_is_searchsorted(vocab):
    """Away from the edges of the steps, where rounding may decide, the search is exact."""
    rng = np.random.default_rng(2)
    weights = rng.random(vocab).astype(np.float32) * (rng.random(vocab) < 0.5)
    weights[1] = 1.0
    edges = np.cumsum(weights.astype(np.float64)) / weights.sum(dtype=np.float64)
    uniform = rng.random(4000).astype(np.float32)
    clear = np.abs(edges[None] - uniform[:, None]).min(axis=1) > 1e-6
    got = inverse_cdf(jnp.broadcast_to(weights[None], (4000, vocab)), jnp.asarray(uniform))
    want = np.searchsorted(edges, uniform, side="right")
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(np.asarray(got)[clear], want[clear])
    assert (weights[np.asarray(got)] > 0).all()


def test_the_ends_of_the_unit_interval_hit_ids_with_mass():
    weights = jnp.zeros((2, 2 * CDF_BLOCK)).at[:, 3].set(0.1).at[:, 700].set(1e-6)
    top = np.nextafter(np.float32(1), np.float32(0))
    np.testing.assert_array_equal(inverse_cdf(weights, jnp.array([0.0, top]))[0], 3)
    assert int(inverse_cdf(weights, jnp.array([0.0, top]))[1]) in (3, 700)


def test_forbidden_ids_have_no_mass_and_the_rest_sums_to_one():
    masked = mask_logits(jnp.zeros((1, V)), forbidden=CFG.forbidden)
    probs = np.asarray(jax.nn.softmax(masked))[0]
    assert (probs[list(CFG.forbidden)] == 0).all()
    assert probs[2] == pytest.approx(1 / (V - 2))
    assert np.isfinite(probs * np.asarray(masked[0])).all()


# ------------------------------------------------------------------------------ whole actions


@pytest.mark.parametrize("temperature", [1.0, 0.4, 0.0])
def test_log_probs_are_those_of_the_full_forward(temperature):
    prompts = make_prompts(10)
    policy = make_policy(dataclasses.replace(CFG, temperature=temperature))
    actions = policy.act(make_params(), prompts, list(range(10)), key=KEY)
    for prompt, action in zip(prompts, actions):
        logp = full_logp(prompt, action.tokens, temperature or 1.0)
        want = logp[np.arange(len(action.tokens)), action.tokens]
        np.testing.assert_allclose(action.logp, want, atol=1e-5)
        if temperature == 0:
            np.testing.assert_array_equal(action.tokens, logp.argmax(-1))


def test_actions_end_at_the_end_token_or_the_limit():
    actions = make_policy().act(make_params(), make_prompts(24), list(range(24)), key=KEY)
    lengths = {len(a.tokens) for a in actions}
    assert min(lengths) < 6
    assert max(lengths) == 6
    for action in actions:
        assert (action.tokens[:-1] != EOS).all()
        assert len(action.tokens) == 6 or action.tokens[-1] == EOS
        assert not set(action.tokens.tolist()) & set(CFG.forbidden)
        assert action.logp.shape == action.tokens.shape
        assert (action.tokens.dtype, action.logp.dtype) == (np.int32, np.float32)


def test_generation_pads_after_the_end():
    prompt = jnp.asarray(np.random.default_rng(3).integers(2, V, (8, 5)), jnp.int32)
    length = jnp.array([5, 3, 1, 0, 5, 2, 4, 0], jnp.int32)
    inputs = {"prompt": prompt, "prompt_length": length, "row_id": jnp.arange(8)}
    out = generate(MODEL, make_params(), **inputs, key=KEY, cfg=CFG)
    after = np.arange(6)[None, :] >= np.asarray(out.length)[:, None]
    assert (np.asarray(out.tokens)[after] == PAD).all()
    assert (np.asarray(out.logp)[after] == 0).all()
    assert (np.asarray(out.logp)[~after] < 0).all()
    np.testing.assert_array_equal(np.asarray(out.length) == 0, np.asarray(length) == 0)


def test_decoding_stops_once_every_row_has_ended():
    """The end is certain at the first token; a loop to the limit of 20,000 would take minutes."""
    params = make_params()
    prompts = make_prompts(3)
    cfg = dataclasses.replace(
        CFG,
        max_new_tokens=20_000,
        eos_ids=(EOS, 2),
        forbidden=tuple(i for i in range(V) if i not in (EOS, 2)),
    )
    actions = make_policy(cfg).act(params, prompts, [0, 1, 2], key=KEY)
    assert [len(a.tokens) for a in actions] == [1, 1, 1]


def test_a_draw_depends_on_its_row_id_only():
    prompts, params, policy = make_prompts(12), make_params(), make_policy()
    whole = policy.act(params, prompts, list(range(12)), key=KEY)
    alone = policy.act(params, prompts[5:6], [5], key=KEY)
    some = policy.act(params, [prompts[i] for i in (9, 5, 2)], [9, 5, 2], key=KEY)
    long = [*prompts[:9], np.full(12, 3, np.int32)]  # forces the longer prompt bucket
    padded = policy.act(params, long, [*range(9), 40], key=KEY)
    for got, want in [
        (alone[0], whole[5]),
        (some[0], whole[9]),
        (some[1], whole[5]),
        (some[2], whole[2]),
        (padded[5], whole[5]),
    ]:
        np.testing.assert_array_equal(got.tokens, want.tokens)
        np.testing.assert_allclose(got.logp, want.logp, atol=1e-5)


def test_keys_row_ids_and_positions_give_different_numbers():
    prompt = np.array([3, 4, 5], np.int32)
    policy, params = make_policy(), make_params()
    first = policy.act(params, [prompt] * 20, list(range(20)), key=KEY)
    assert len({tuple(a.tokens) for a in first}) > 10
    second = policy.act(params, [prompt] * 20, list(range(20)), key=jax.random.fold_in(KEY, 1))
    assert any(tuple(a.tokens) != tuple(b.tokens) for a, b in zip(first, second))
    same = policy.act(params, [prompt] * 2, [3, 3], key=KEY)
    np.testing.assert_array_equal(same[0].tokens, same[1].tokens)


def test_second_tokens_follow_their_conditional_distribution():
    """First and second uniform numbers of a row are independent: the pair has the model's law."""
    prompt = np.array([[5, 9, 3]], np.int32)
    rows = 20_000
    cfg = dataclasses.replace(CFG, max_new_tokens=2)
    out = generate(
        MODEL,
        make_params(),
        prompt=jnp.broadcast_to(prompt, (rows, 3)),
        prompt_length=jnp.full((rows,), 3, jnp.int32),
        key=KEY,
        row_id=jnp.arange(rows),
        cfg=cfg,
    )
    tokens = np.asarray(out.tokens)
    first = np.exp(full_logp(prompt[0], np.array([2]), 1.0)[0])
    assert chi_square(np.bincount(tokens[:, 0], minlength=V), first) < 2.1
    common = int(np.argmax(np.where(np.arange(V) == EOS, 0, first)))
    second = np.exp(full_logp(prompt[0], np.array([common, 2]), 1.0)[1])
    follow = tokens[tokens[:, 0] == common, 1]
    assert len(follow) > 500
    assert chi_square(np.bincount(follow, minlength=V), second) < 2.3


# ------------------------------------------------------------------------------ the host


def test_row_buckets():
    got = [row_bucket(n, unit=8, most=96) for n in (0, 1, 8, 9, 16, 17, 33, 64, 65, 96)]
    assert got == [0, 8, 8, 32, 32, 32, 96, 96, 96, 96]
    assert row_bucket(3, unit=8, most=5) == 8
    assert row_bucket(70, unit=24, most=100) == 96


def test_few_shapes_compile():
    cfg = dataclasses.replace(CFG, max_new_tokens=5)  # a loop of its own
    policy, params = Policy(MODEL, cfg), make_params()
    for count, seed in ((1, 0), (5, 1), (8, 2), (20, 3), (17, 4), (24, 5)):
        policy.act(params, make_prompts(count, seed), list(range(count)), key=KEY)
    assert policy._compiled._cache_size() == 2  # rows 8 and 24; all prompts fit the shorter bucket


def test_no_prompts_no_actions():
    assert make_policy().act(make_params(), [], [], key=KEY) == []


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([np.ones(13, np.int32)], r"13 tokens.*is 12"),
        ([np.ones(0, np.int32)], "empty prompt"),
        ([np.ones(2, np.int32)] * 25, r"25 prompts.*max_rows=24"),
    ],
)
def test_prompts_beyond_the_limits_are_errors(prompts, message):
    with pytest.raises(ValueError, match=message):
        make_policy().act(make_params(), prompts, list(range(len(prompts))), key=KEY)


def test_a_row_id_per_prompt():
    with pytest.raises(ValueError, match="2 prompts but 3 row ids"):
        make_policy().act(make_params(), [np.ones(2, np.int32)] * 2, [0, 1, 2], key=KEY)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("max_rows", 0),
        ("prompt_buckets", ()),
        ("prompt_buckets", (8, 4)),
        ("temperature", -0.1),
        ("top_k", -1),
        ("top_p", 0.0),
        ("forbidden", (EOS,)),
    ],
)
def test_bad_settings_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(CFG, **{field: value})
