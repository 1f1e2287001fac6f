"""The sampler: its distribution, its log-probabilities, and what a draw may depend on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from acting import act, requests_of

from atod_jax.device import policy as device_policy
from atod_jax.device.policy import Counts, Policy, row_bucket
from atod_jax.device.sampling import (
    CDF_BLOCK,
    SamplingConfig,
    least_kept,
    pick,
)
from atod_jax.models import ModelConfig, build
from atod_jax.records import Action, Request

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
    slots=24,
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


@functools.cache
def make_weights():
    return MODEL.serve(make_params())


def full_logits(tokens: np.ndarray, tail: int) -> np.ndarray:
    """Logits at the last `tail` tokens, of one uncached forward pass."""
    line = np.zeros((1, 32), np.int32)
    line[0, : len(tokens)] = tokens
    hidden = forward()(make_params(), line, np.array([[len(tokens)]], np.int32))
    states = hidden[0, len(tokens) - tail : len(tokens)]
    return np.asarray(states @ MODEL.head(make_params()).T)


def full_logp(prompt: np.ndarray, action: np.ndarray, temperature: float) -> np.ndarray:
    """log softmax of the masked logits of one uncached forward pass over prompt + action."""
    tokens = np.concatenate([prompt, action])[:-1]
    logits = full_logits(tokens, len(action)).astype(np.float64) / temperature
    logits[:, list(CFG.forbidden)] = -np.inf
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@functools.cache
def forward():
    return jax.jit(MODEL.hidden)


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
    rows = jnp.broadcast_to(jnp.asarray(logits)[:, None], (len(logits), count))
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
    logits = jnp.log(jnp.array([[0.5], [0.3], [0.2]]))
    cfg = dataclasses.replace(CFG, forbidden=(), eos_ids=(0,), top_k=1)
    token, logp = pick(logits, jnp.array([0.99]), temperature=cfg.temperature, cfg=cfg)
    assert int(token[0]) == 0
    assert float(logp[0]) == pytest.approx(np.log(0.5), abs=1e-6)


def test_ties_with_the_last_one_kept_are_kept():
    weights = jnp.array([[1.0, 2.0, 2.0, 0.5]])
    assert least_kept(weights, top_k=1, top_p=1.0) == least_kept(weights, top_k=0, top_p=0.3) == 2


@pytest.mark.parametrize("vocab", [5, CDF_BLOCK, 3 * CDF_BLOCK + 17])
def test_the_draw_is_a_search_in_the_cumulative_distribution(vocab):
    """Away from the edges of the steps, where rounding may decide, it is exact."""
    rng = np.random.default_rng(2)
    weights = rng.random(vocab) * (rng.random(vocab) < 0.5)
    weights[1] = 1.0
    edges = np.cumsum(weights) / weights.sum()
    uniform = rng.random(4000).astype(np.float32)
    clear = np.abs(edges[None] - uniform[:, None]).min(axis=1) > 1e-6
    got, logp = pick_from(weights, uniform)
    want = np.searchsorted(edges, uniform, side="right")
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(got[clear], want[clear])
    assert (weights[got] > 0).all()
    np.testing.assert_allclose(logp, np.log(weights[got] / weights.sum()), atol=1e-5)
    np.testing.assert_array_equal(pick_from(weights, uniform, temperature=0.0)[0], 1)


def pick_from(weights, uniform, temperature=1.0):
    with np.errstate(divide="ignore"):
        logits = np.log(weights).astype(np.float32)
    logits = jnp.broadcast_to(jnp.asarray(logits)[:, None], (len(weights), len(uniform)))
    cfg = dataclasses.replace(CFG, forbidden=())
    token, logp = compiled_pick()(logits, jnp.asarray(uniform), temperature=temperature, cfg=cfg)
    return np.asarray(token), np.asarray(logp)


def test_the_ends_of_the_unit_interval_hit_ids_with_mass():
    weights = np.zeros(2 * CDF_BLOCK)
    top = np.nextafter(np.float32(1), np.float32(0))
    weights[3] = 0.1
    np.testing.assert_array_equal(pick_from(weights, np.array([0.0, top], np.float32))[0], 3)
    weights[700] = 1e-6
    assert set(pick_from(weights, np.array([0.0, top], np.float32))[0]) <= {3, 700}


# ------------------------------------------------------------------------------ whole actions


def write(asked, *, policy=None, key=KEY):
    return act(policy or make_policy(), make_weights(), asked, key=key)


@functools.cache
def compiled_pick():
    return jax.jit(pick, static_argnames="cfg")


def oracle(request: Request, cfg: SamplingConfig = CFG) -> Action:
    """One action without cache, slots or batch, from the whole forward pass of every prefix."""
    row_key = jax.random.fold_in(jax.random.fold_in(KEY, request.turn), request.row)
    tokens, logp = [], []
    while len(tokens) < cfg.max_new_tokens and not (tokens and tokens[-1] in cfg.eos_ids):
        uniform = jax.random.uniform(jax.random.fold_in(row_key, len(tokens)))
        logits = full_logits(np.concatenate([request.prompt, tokens]).astype(np.int32), 1).T
        token, lp = compiled_pick()(logits, uniform[None], temperature=cfg.temperature, cfg=cfg)
        tokens.append(int(token[0]))
        logp.append(float(lp[0]))
    return Action(np.asarray(tokens, np.int32), np.asarray(logp, np.float32))


def assert_same(got: Action, want: Action):
    np.testing.assert_array_equal(got.tokens, want.tokens)
    np.testing.assert_allclose(got.logp, want.logp, atol=1e-5)


@pytest.mark.parametrize(
    ("slots", "look", "packs"), [(24, 8, False), (24, 2, True), (8, 2, True), (8, 1, False)]
)
def test_an_action_depends_on_its_prompt_row_and_turn_only(slots, look, packs, monkeypatch):
    """Whatever the slots, the chunk, the lines and the neighbours: what one row alone would say."""
    monkeypatch.setattr(device_policy, "PART_TOKENS", 4)
    monkeypatch.setattr(device_policy, "PREFILL_TOKENS", 24)
    monkeypatch.setattr(device_policy, "ENTRIES", 3)
    policy = Policy(MODEL, dataclasses.replace(CFG, slots=slots, look=look))
    policy.packs = packs
    prompts = make_prompts(20)
    asked = requests_of([*prompts, *[prompts[3]] * 5])
    again = requests_of(prompts[:4], turn=2, rows=[40, 31, 41, 29])
    late = requests_of([np.full(11, 3, np.int32)], rows=[99])  # forces the longer bucket
    sampler, actions = policy.sampler(make_weights(), KEY), {}
    for more in (asked[:15], asked[15:] + again, late):
        sampler.submit(more)
        actions |= dict(sampler.advance(30 - len(actions)))
    while (some := sampler.advance(30 - len(actions))) is not None:
        actions |= dict(some)
    assert len(actions) == 30
    for request in asked + again + late:
        assert_same(actions[request.row], oracle(request))


@pytest.mark.parametrize("temperature", [1.0, 0.4, 0.0])
def test_log_probs_are_those_of_the_full_forward(temperature):
    prompts = make_prompts(10)
    policy = make_policy(dataclasses.replace(CFG, temperature=temperature))
    for row, action in write(requests_of(prompts), policy=policy).items():
        logp = full_logp(prompts[row], action.tokens, temperature or 1.0)
        want = logp[np.arange(len(action.tokens)), action.tokens]
        np.testing.assert_allclose(action.logp, want, atol=1e-5)
        if temperature == 0:
            np.testing.assert_array_equal(action.tokens, logp.argmax(-1))


def test_actions_end_at_the_end_token_or_the_limit():
    actions = write(requests_of(make_prompts(24))).values()
    lengths = {len(a.tokens) for a in actions}
    assert min(lengths) < 6
    assert max(lengths) == 6
    for action in actions:
        assert (action.tokens[:-1] != EOS).all()
        assert action.cut == (action.tokens[-1] != EOS)
        assert len(action.tokens) == 6 or not action.cut
        assert not set(action.tokens.tolist()) & set(CFG.forbidden)
        assert action.logp.shape == action.tokens.shape
        assert (action.tokens.dtype, action.logp.dtype) == (np.int32, np.float32)


def test_decoding_stops_once_every_action_has_ended():
    """The end is certain at the first token; a loop to the limit of 20,000 would take minutes."""
    cfg = dataclasses.replace(
        CFG,
        look=20_000,
        max_new_tokens=20_000,
        eos_ids=(EOS, 2),
        forbidden=tuple(i for i in range(V) if i not in (EOS, 2)),
    )
    policy = make_policy(cfg)
    assert [len(a.tokens) for a in write(requests_of(make_prompts(3)), policy=policy).values()] == [
        1
    ] * 3
    assert policy.take_counts() == Counts(steps=0, kept=0)


def test_keys_rows_turns_and_positions_give_different_numbers():
    prompt = np.array([3, 4, 5], np.int32)
    first = write(requests_of([prompt] * 20))
    assert len({tuple(a.tokens) for a in first.values()}) > 10
    for other in (
        write(requests_of([prompt] * 20, turn=1)),
        write(requests_of([prompt] * 20), key=jax.random.fold_in(KEY, 1)),
    ):
        assert any(tuple(first[n].tokens) != tuple(other[n].tokens) for n in range(20))


def test_second_tokens_follow_their_conditional_distribution():
    """First and second uniform numbers of a row are independent: the pair has the model's law."""
    prompt = np.array([5, 9, 3], np.int32)
    rows = 20_000
    policy = make_policy(dataclasses.replace(CFG, max_new_tokens=2, slots=rows))
    actions = write(requests_of([prompt] * rows), policy=policy)
    tokens = np.zeros((rows, 2), np.int32)
    for row, action in actions.items():
        tokens[row, : len(action.tokens)] = action.tokens
    first = np.exp(full_logp(prompt, np.array([2]), 1.0)[0])
    assert chi_square(np.bincount(tokens[:, 0], minlength=V), first) < 2.1
    common = int(np.argmax(np.where(np.arange(V) == EOS, 0, first)))
    second = np.exp(full_logp(prompt, np.array([common, 2]), 1.0)[1])
    follow = tokens[tokens[:, 0] == common, 1]
    assert len(follow) > 500
    assert chi_square(np.bincount(follow, minlength=V), second) < 2.3


# ------------------------------------------------------------------------------ the host


def test_row_buckets():
    got = [row_bucket(n, unit=8, most=512) for n in (0, 1, 8, 9, 32, 33, 128, 129, 512, 600)]
    assert got == [0, 8, 8, 32, 32, 128, 128, 512, 512, 512]
    assert [row_bucket(n, unit=8, most=90) for n in (1, 24, 25)] == [24, 24, 96]
    assert row_bucket(3, unit=8, most=5) == 8
    assert row_bucket(20, unit=24, most=100) == 48


def test_few_shapes_compile():
    policy = make_policy(dataclasses.replace(CFG, max_new_tokens=5, slots=64))  # its own programs
    for count, seed in ((1, 0), (5, 1), (8, 2), (20, 3), (17, 4), (24, 5)):
        write(requests_of(make_prompts(count, seed)), policy=policy)
    compiled = policy.programs  # slots 16 and 64; all prompts fit the shorter bucket
    sizes = [f._cache_size() for f in (compiled.prefill, compiled.fill, compiled.decode)]
    assert sizes == [1, 2, 2]


def test_no_prompts_no_actions():
    sampler = make_policy().sampler(make_weights(), KEY)
    assert sampler.advance(3) == []
    assert sampler.advance(0) is None


@pytest.mark.parametrize(
    ("prompt", "message"),
    [(np.ones(13, np.int32), r"13 tokens.*is 12"), (np.ones(0, np.int32), "empty prompt")],
)
def test_prompts_beyond_the_limits_are_errors(prompt, message):
    with pytest.raises(ValueError, match=message):
        make_policy().sampler(make_weights(), KEY).submit(requests_of([prompt]))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("slots", 0),
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
