"""The update: equal to a plain full-batch gradient, however the batch is cut or padded."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from atod_jax.core.fused import HeadConfig, Tiling
from atod_jax.core.losses import LossConfig
from atod_jax.device.learner import Piece, init_state, make_update, minibatches
from atod_jax.device.optim import OptimConfig, make_learning_rate, make_optimizer
from atod_jax.device.scoring import ScoreConfig, from_micro, make_score, to_micro
from atod_jax.models import ModelConfig, build
from atod_jax.types import Rows, Signal, TurnBatch

V, N, P, R = 23, 16, 7, 4
CONFIG = ModelConfig(
    vocab_size=V, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
    intermediate_size=24, rope_theta=1e4, rms_eps=1e-6, tie_embeddings=True,
)  # fmt: skip
MODEL = build(CONFIG)
TILING = Tiling(backend="tiles", token_block=8, vocab_block=9)
SCORE = ScoreConfig(micro_rows=4, head=HeadConfig(forbidden=(0,), tiling=TILING))


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda x: 2 * x, MODEL.init(jax.random.key(0)))


def make_batch(rows=N, padding=0, seed=0):
    rng = np.random.default_rng(seed)
    length = rng.integers(1, R + 1, rows)
    mask = np.arange(R) < length[:, None]
    batch = Rows(
        prompt=rng.integers(1, V, (rows, P)).astype(np.int32),
        prompt_length=rng.integers(1, P + 1, rows).astype(np.int32),
        action=rng.integers(1, V, (rows, R)).astype(np.int32),
        action_mask=mask,
        sampler_logp=np.zeros((rows, R), np.float32),
        traj=np.arange(rows, dtype=np.int32),
        turn=np.zeros(rows, np.int32),
        action_valid=np.ones(rows, bool),
        reward=np.zeros(rows, np.float32),
        anchor=np.zeros(rows, np.int32),
    )
    signal = Signal(
        advantage=rng.normal(size=(rows, R)).astype(np.float32),
        ce_weight=rng.uniform(size=(rows, R)).astype(np.float32),
        old_logp=rng.normal(-3, 0.3, size=(rows, R)).astype(np.float32),
        diagnostics={},
    )
    share = np.where(mask, 1 / mask.sum(), 0.0).astype(np.float32)
    if padding:
        junk_rows, junk_signal, _ = make_batch(padding, seed=9)
        junk_rows = junk_rows.replace(
            action_mask=jnp.zeros((padding, R), bool), prompt_length=jnp.zeros(padding, jnp.int32)
        )
        batch = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), batch, junk_rows)
        streams = {
            f: jnp.concatenate([getattr(signal, f), getattr(junk_signal, f)])
            for f in ("advantage", "ce_weight", "old_logp")
        }
        signal = signal.replace(**streams)
        share = np.concatenate([share, np.zeros((padding, R), np.float32)])
    return jax.tree.map(jnp.asarray, Piece(batch, signal, share))


@functools.cache
def plain_update(score):
    """The update of plain gradient descent with rate 1, compiled once per shape."""
    tx = optax.identity()
    return make_update(MODEL, tx, lambda step: jnp.float32(1.0), loss=LossConfig(), score=score)


def one_update(params, piece, *, score=SCORE, **more):
    state = init_state(jax.tree.map(jnp.copy, params), optax.identity())
    new, metrics = plain_update(score)(state, piece, *more.values())
    grads = jax.tree.map(lambda a, b: a - b, params, new.params)
    return grads, {name: mean.value() for name, mean in metrics.items()}


def plain_loss(params, piece):
    """The objective written out over full logits of all columns."""
    (rows, signal, share), cfg = piece, LossConfig()
    tokens = jnp.concatenate([rows.prompt, rows.action], 1)
    valid = jnp.concatenate(
        [jnp.arange(P)[None] >= P - rows.prompt_length[:, None], rows.action_mask], 1
    )
    hidden, _ = MODEL.hidden(params, tokens, valid, tail=P + R)
    logits = jnp.einsum("nld,vd->nlv", hidden, MODEL.head(params)).at[..., 0].set(-1e30)
    logp = jnp.take_along_axis(
        jax.nn.log_softmax(logits[:, P - 1 : -1]), rows.action[..., None], 2
    )[..., 0]
    ratio, a = jnp.exp(logp - signal.old_logp), signal.advantage
    loss = jnp.maximum(-a * ratio, -a * jnp.clip(ratio, 1 - cfg.clip_low, 1 + cfg.clip_high))
    loss = jnp.where(a < 0, jnp.minimum(loss, -a * cfg.dual_clip), loss)
    return jnp.sum(share * (loss - signal.ce_weight * logp))


def assert_trees_close(a, b):
    """Equal to 1e-5 of the largest entry: float32 sums taken in another order."""
    scale = max(float(np.abs(x).max()) for x in jax.tree.leaves(b))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * scale), a, b)


def test_the_number_of_micro_batches_does_not_change_the_gradient(params):
    batch = make_batch()
    whole, metrics = one_update(params, batch, score=dataclasses.replace(SCORE, micro_rows=16))
    for micro in (2, 8):
        grads, other = one_update(params, batch, score=dataclasses.replace(SCORE, micro_rows=micro))
        assert_trees_close(grads, whole)
        assert other == pytest.approx(metrics, rel=1e-5)


def test_padding_rows_do_not_change_the_gradient(params):
    assert_trees_close(
        one_update(params, make_batch(padding=8))[0], one_update(params, make_batch())[0]
    )


def test_row_order_does_not_change_the_gradient(params):
    piece = make_batch()
    order = np.random.default_rng(3).permutation(N)
    shuffled = jax.tree.map(lambda x: x[order], piece)
    assert_trees_close(one_update(params, shuffled)[0], one_update(params, piece)[0])


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
def test_minibatch_gradients_average_to_the_gradient_of_the_batch(params, mode):
    rows, signal, _ = make_batch()
    batch = TurnBatch(rows=rows, returns=jnp.zeros(N), group=jnp.zeros(N, jnp.int32))
    (whole,) = minibatches(batch, signal, minibatch_rows=N, aggregation=mode)
    pieces = minibatches(batch, signal, minibatch_rows=8, aggregation=mode)
    assert len(pieces) == 2
    grads = [one_update(params, piece)[0] for piece in pieces]
    mean = jax.tree.map(lambda *g: sum(g) / len(g), *grads)
    assert_trees_close(mean, one_update(params, whole)[0])


@pytest.mark.parametrize("capacity", [10, 16])
def test_room_for_the_action_tokens_does_not_change_the_gradient(params, capacity):
    piece = make_batch()
    micro = to_micro(piece.rows.action_mask, SCORE.micro_rows)
    assert int(micro.sum(axis=(1, 2)).max()) in range(8, 17)
    if capacity == 10:  # only where it fits
        keep = jnp.arange(R)[None] < 2
        rows = piece.rows.replace(action_mask=piece.rows.action_mask & keep)
        piece = piece._replace(rows=rows)
    grads, metrics = one_update(params, piece, capacity=capacity)
    want, plain = one_update(params, piece)
    assert_trees_close(grads, want)
    assert metrics == pytest.approx(plain, rel=1e-5)


def test_too_little_room_makes_the_loss_nan(params):
    _, metrics = one_update(params, make_batch(), capacity=3)
    assert np.isnan(metrics["loss/total"])


def test_an_exact_kl_moves_the_student_to_the_teacher(params):
    """The gradient of KL(student || teacher) from its states and head, against full logits."""
    rows, signal, share = make_batch()
    teacher = MODEL.init(jax.random.key(5))
    states = make_score(MODEL, SCORE, keep_states=True)(teacher, rows).hidden
    zero = jnp.zeros_like(share)
    signal = signal.replace(
        advantage=zero, ce_weight=zero, kl_weight=zero + 1, teacher_hidden=states
    )
    piece = Piece(rows, signal, share)

    def log_probs(p):
        tokens = jnp.concatenate([rows.prompt, rows.action], 1)[:, :-1]
        valid = jnp.arange(P)[None] >= P - rows.prompt_length[:, None]
        valid = jnp.concatenate([valid, rows.action_mask], 1)[:, :-1]
        hidden, _ = MODEL.hidden(p, tokens, valid, tail=R)
        logits = jnp.einsum("nld,vd->nlv", hidden, MODEL.head(p)).at[..., 0].set(-1e30)
        return jax.nn.log_softmax(logits)

    def plain_loss(p):
        ours, theirs = log_probs(p), jax.lax.stop_gradient(log_probs(teacher))
        return jnp.sum(share[..., None] * jnp.exp(ours) * (ours - theirs))

    value, expected = jax.jit(jax.value_and_grad(plain_loss))(params)
    grads, metrics = one_update(params, piece, capacity=None, teacher_head=MODEL.head(teacher))
    assert metrics["loss/total"] == pytest.approx(float(value), rel=1e-5)
    assert_trees_close(grads, expected)


def test_the_gradient_is_that_of_the_plain_objective(params):
    piece = make_batch()
    value, expected = jax.jit(jax.value_and_grad(plain_loss))(params, piece)
    grads, metrics = one_update(params, piece)
    assert metrics["loss/total"] == pytest.approx(float(value), rel=1e-5)
    assert_trees_close(grads, expected)


def test_micro_batches_are_undone_exactly():
    x = {"a": jnp.arange(24).reshape(12, 2), "b": jnp.arange(12)}
    micro = to_micro(x, 4)
    assert micro["a"].shape == (3, 4, 2)
    assert_trees_close(from_micro(micro), x)


def test_scores_do_not_depend_on_micro_rows_or_padding(params):
    rows, padded = make_batch().rows, make_batch(padding=8).rows
    whole = make_score(MODEL, dataclasses.replace(SCORE, micro_rows=16))(params, rows)
    tiny = dataclasses.replace(SCORE.head, tiling=Tiling("tiles", 3, 4))
    small = make_score(MODEL, ScoreConfig(micro_rows=2, head=tiny))(params, padded)
    np.testing.assert_allclose(small.logp[:N], whole.logp, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(small.entropy[:N], whole.entropy, rtol=1e-5, atol=1e-6)
    assert not np.asarray(small.logp[N:]).any()


def test_learning_rate_follows_the_iteration():
    rate = make_learning_rate(OptimConfig(lr=2.0, warmup_steps=4), 20)
    np.testing.assert_allclose([rate(s) for s in (0, 1, 4, 19)], [0, 0.5, 2, 2])
    cosine = make_learning_rate(OptimConfig(lr=2.0, schedule="cosine"), 10)
    np.testing.assert_allclose([cosine(s) for s in (0, 5, 10)], [2, 1, 0], atol=1e-6)


def test_adamw_equals_optax():
    cfg = OptimConfig(lr=0.1, weight_decay=0.3, clip_norm=1e9)
    x = {"w": jnp.array([1.0, -2.0])}
    g = {"w": jnp.array([0.5, 0.1])}
    direction, _ = make_optimizer(cfg).update(g, make_optimizer(cfg).init(x), x)
    reference = optax.adamw(0.1, weight_decay=0.3)
    expected, _ = reference.update(g, reference.init(x), x)
    np.testing.assert_allclose(-0.1 * direction["w"], expected["w"], rtol=1e-6)
