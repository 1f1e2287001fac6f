"""cuDNN's attention against float64, and a model that plays and reads with it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from played_turns import pairs, whole
from tiny_models import FAMILIES, loud_params

from atod_jax.models import build, serving
from atod_jax.models.attention import attend, kernel_for, turns_of

pytestmark = pytest.mark.gpu

HEADS, SHARED, WIDTH = 8, 2, 128  # queries, keys and values, of a head
LINES = {
    "one turn a line": (256, [[256], [1], [0], [131]]),
    "an odd number of columns": (257, [[257], [200]]),
    "several": (256, [[100, 1, 0, 155], [0, 0, 0, 0], [37, 64, 90, 0], [0, 256, 0, 0]]),
    "several in an odd number": (321, [[2, 3, 316], [129, 0, 0]]),
}


def make_heads(lines: int, columns: int) -> list[np.ndarray]:
    """Queries, keys, values, and weights of a sum of the result; numbers that bfloat16 has."""
    rng = np.random.default_rng(0)
    shapes = [(lines, columns, n, WIDTH) for n in (HEADS, SHARED, SHARED, HEADS)]
    return [np.array(jnp.asarray(rng.standard_normal(s), jnp.bfloat16), np.float64) for s in shapes]


def exact(q, k, v, weight):
    """Attention of one turn and the gradients of sum(weight * result), in float64."""
    result = [np.zeros_like(x) for x in (q, q, k, v)]
    for head in range(HEADS):
        of = head // (HEADS // SHARED)
        scores = q[:, head] @ k[:, of].T * WIDTH**-0.5
        scores[np.triu_indices(len(q), 1)] = -np.inf
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        dp = weight[:, head] @ v[:, of].T
        ds = p * (dp - (dp * p).sum(axis=1, keepdims=True)) * WIDTH**-0.5
        result[0][:, head] = p @ v[:, of]
        result[1][:, head] = ds @ k[:, of]
        result[2][:, of] += ds.T @ q[:, head]
        result[3][:, of] += p.T @ weight[:, head]
    return result


@pytest.mark.parametrize("name", LINES)
def test_attention_and_its_gradients(name):
    columns, lengths = LINES[name]
    lengths = np.array(lengths, np.int32)
    q, k, v, weight = make_heads(len(lengths), columns)
    number = np.asarray(turns_of(jnp.array(lengths), columns).number)
    weight[number == lengths.shape[1]] = 0  # behind the last turn
    assert kernel_for(jnp.bfloat16, WIDTH) == "cudnn"

    @jax.jit
    def ours(q, k, v, weight, lengths):
        def total(q, k, v):
            y = attend(q, k, v, turns=turns_of(lengths, columns)).astype(jnp.float32)
            return jnp.sum(y * weight), y

        (_, y), grads = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(q, k, v)
        return y, *grads

    args = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
    args += [jnp.asarray(weight, jnp.float32), lengths]
    got = [np.asarray(x, np.float64) for x in ours(*args)]
    assert all(np.isfinite(x).all() for x in got)
    for line, turn in np.argwhere(lengths):
        at = line, number[line] == turn
        want = exact(q[at], k[at], v[at], weight[at])
        for part, ours_of, theirs in zip(["y", "dq", "dk", "dv"], got, want):
            error, size = norm(ours_of[at] - theirs), max(norm(theirs), 0.1 * norm(ours_of[line]))
            assert error <= (0.01 if part == "y" else 0.02) * size, (part, line, turn)
    for grad in got[1:]:
        assert not grad[number == lengths.shape[1]].any()  # nobody sees what is behind


def norm(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x**2))) if x.size else 0.0


@pytest.mark.parametrize("written", [0, 2, 6])
def test_a_token_reads_its_slot_and_what_is_recent(written):
    """The two parts of a decoding step, against all of it in float64."""
    lengths, columns, chunk = np.array([1, 2, 77, 128, 640]), 640, 7
    q, k, v, _ = make_heads(len(lengths), columns + chunk)
    q = q[:, :1]
    old, new = np.split(k, [columns], axis=1), np.split(v, [columns], axis=1)
    like = functools.partial(jnp.asarray, dtype=jnp.bfloat16)
    config = dataclasses.replace(
        FAMILIES["qwen3"],
        num_layers=1,
        num_heads=HEADS,
        num_kv_heads=SHARED,
        head_dim=WIDTH,
        dtype="bfloat16",
    )
    cache = serving.empty_cache(config, len(lengths), columns, recent=chunk)
    cache = cache.replace(
        k=(like(old[0]).transpose(cache.form.k),),
        v=(like(new[0]).transpose(cache.form.v),),
        length=jnp.array(lengths),
        recent_k=(like(old[1]).transpose(cache.form.k),),
        recent_v=(like(new[1]).transpose(cache.form.v),),
        written=jnp.int32(written),
    )
    now = [like(x[:, columns + written :][:, :1]) for x in (k, v)]
    y, _ = jax.jit(functools.partial(serving._read, layer=0))(like(q), *now, cache=cache)
    for slot, length in enumerate(lengths):
        seen = [*range(length), *range(columns, columns + written + 1)]
        for head in range(HEADS):
            of = head // (HEADS // SHARED)
            scores = k[slot, seen, of] @ q[slot, 0, head] * WIDTH**-0.5
            p = np.exp(scores - scores.max())
            want = p / p.sum() @ v[slot, seen, of]
            error = norm(np.asarray(y[slot, 0, head], np.float64) - want)
            assert error <= 0.01 * max(norm(want), 0.1)


def test_playing_and_reading_in_bfloat16_are_near_float32():
    config = dataclasses.replace(FAMILIES["qwen3"], head_dim=64)
    params = loud_params(config)
    want = whole(build(config), params)
    model = build(dataclasses.replace(config, dtype="bfloat16"))
    weights = model.serve(params)
    assert "qkv" in weights["blocks"][0]["attn"]
    for turn, states in pairs(model, params, weights).items():
        for ours in states:
            theirs = want[turn][: len(ours)]
            assert norm(np.asarray(ours, np.float64) - theirs) < 0.05 * norm(theirs)
