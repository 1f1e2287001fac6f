"""The update: equal to a plain full-batch gradient, however the batch is cut or padded."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_update import MODEL, SCORE, N, P, R, assert_trees_close, make_batch, plain_loss

from atod_jax.core.fused import TeacherHead
from atod_jax.core.losses import SURROGATES, LossConfig, objective
from atod_jax.device.learner import Piece, init_state, make_update, minibatches
from atod_jax.device.optim import OptimConfig, make_learning_rate, make_optimizer
from atod_jax.device.scoring import ScoreConfig, from_micro, make_score, row_stats, to_micro
from atod_jax.types import TurnBatch

PPO = LossConfig()


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda x: 2 * x, MODEL.init(jax.random.key(0)))


@functools.cache
def plain_update(score, loss):
    """The update of plain gradient descent with rate 1, compiled once per shape."""
    tx = optax.identity()
    rate = lambda step: jnp.float32(1.0)  # noqa: E731
    return make_update(MODEL, tx, learning_rate=rate, loss=loss, score=score)


def one_update(params, piece, *, score=SCORE, capacity=None, loss=PPO):
    state = init_state(MODEL, params, tx=optax.identity())
    new, metrics = plain_update(score, loss)(state, piece, capacity=capacity)
    grads = jax.tree.map(lambda a, b: a - b, params, new.params)
    return grads, {name: mean.value() for name, mean in metrics.items()}


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
    rows, signal, _, _ = make_batch()
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
    rows, signal, share, _ = make_batch()
    teacher = MODEL.init(jax.random.key(5))
    states = make_score(MODEL, SCORE, keep_states=True)(teacher, rows).states
    zero = jnp.zeros_like(share)
    signal = signal.replace(advantage=zero, ce_weight=zero, kl_weight=zero + 1)
    head = TeacherHead(states, MODEL.head(teacher))
    piece = Piece(rows, signal, share, head)

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
    grads, metrics = one_update(params, piece)
    assert metrics["loss/total"] == pytest.approx(float(value), rel=1e-5)
    assert_trees_close(grads, expected)


def test_minibatches_share_the_matrix_of_a_teacher():
    rows, signal, _, _ = make_batch()
    batch = TurnBatch(rows=rows, returns=jnp.zeros(N), group=jnp.zeros(N, jnp.int32))
    states = jnp.arange(N * R * 3.0).reshape(N, R, 3)
    head = TeacherHead(states, jnp.ones((5, 3)))
    cut = {"minibatch_rows": 8, "aggregation": "token-mean"}
    pieces = minibatches(batch, signal, **cut, teacher=head)
    assert all(piece.teacher.matrix is head.matrix for piece in pieces)
    np.testing.assert_array_equal(jnp.concatenate([p.teacher.states for p in pieces]), states)
    assert [p.teacher for p in minibatches(batch, signal, **cut)] == [None, None]


def test_a_state_is_a_copy_of_what_it_starts_from(params):
    before = jax.tree.map(np.array, params)
    one_update(params, make_batch())
    jax.tree.map(np.testing.assert_array_equal, params, before)


def test_the_gradient_is_that_of_the_plain_objective(params):
    piece = make_batch()
    value, expected = jax.jit(jax.value_and_grad(plain_loss))(params, piece)
    grads, metrics = one_update(params, piece)
    assert metrics["loss/total"] == pytest.approx(float(value), rel=1e-5)
    assert_trees_close(grads, expected)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_every_surrogate_is_the_objective_of_the_scores(params, surrogate):
    """Also one whose tokens depend on all of their row, which the head sees in blocks."""
    (rows, signal, share, _), cfg = make_batch(), LossConfig(surrogate=surrogate, clip_low=0.02)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def whole(params):
        stats = row_stats(MODEL, params, rows=rows, cfg=SCORE)
        return objective(stats, signal, action_mask=rows.action_mask, share=share, cfg=cfg)

    (value, means), expected = whole(params)
    grads, metrics = one_update(params, Piece(rows, signal, share), loss=cfg)
    assert_trees_close(grads, expected)
    want = {name: mean.value() for name, mean in means.items()} | {"loss/total": float(value)}
    assert want == pytest.approx({name: metrics[name] for name in want}, rel=1e-5, abs=1e-7)


def test_micro_batches_are_undone_exactly():
    x = {"a": jnp.arange(24).reshape(12, 2), "b": jnp.arange(12)}
    micro = to_micro(x, 4)
    assert micro["a"].shape == (3, 4, 2)
    assert_trees_close(from_micro(micro), x)


def test_scores_do_not_depend_on_micro_rows_or_padding(params):
    rows, padded = make_batch().rows, make_batch(padding=8).rows
    whole = make_score(MODEL, dataclasses.replace(SCORE, micro_rows=16))(params, rows)
    tiny = dataclasses.replace(SCORE.head, block=3)
    small = make_score(MODEL, ScoreConfig(micro_rows=2, head=tiny))(params, padded)
    np.testing.assert_allclose(small.logp[:N], whole.logp, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(small.entropy[:N], whole.entropy, rtol=1e-5, atol=1e-6)
    assert not np.asarray(small.logp[N:]).any()


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("warmup", [0, 1, 4, 30])
def test_the_learning_rate_is_a_function_of_the_iteration(schedule, warmup):
    cfg, total = OptimConfig(lr=2e-5, schedule=schedule, warmup_steps=warmup), 20
    rate = jax.jit(make_learning_rate(cfg, total))
    for step in (0, 1, 2, 4, 10, 19, 20, 25, 31, 40):
        expected = 2e-5 * (min(step / warmup, 1.0) if warmup else 1.0)
        if schedule == "cosine":
            done = (step - warmup) / max(total - warmup, 1)
            expected *= 0.5 * (1 + np.cos(np.pi * np.clip(done, 0, 1)))
        got = rate(jnp.array(step))
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-11)


@pytest.mark.parametrize(
    "options",
    [
        {"lr": -1e-6}, {"lr": float("nan")}, {"schedule": "linear"}, {"warmup_steps": -1},
        {"b1": 1.0}, {"b2": -0.1}, {"eps": 0.0}, {"weight_decay": -0.1}, {"clip_norm": -1.0},
    ],
    ids=str,
)  # fmt: skip
def test_bad_options_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        OptimConfig(**options)


@pytest.mark.parametrize(("clip_norm", "factor"), [(0.0, 1.0), (1.0, 0.2), (10.0, 1.0)])
def test_gradients_are_clipped_unless_the_bound_is_zero(clip_norm, factor):
    """Without decay and with a huge eps the direction is the gradient over eps."""
    cfg = OptimConfig(clip_norm=clip_norm, weight_decay=0.0, eps=1e9)
    tx, gradient = make_optimizer(cfg), {"w": jnp.array([3.0, -4.0])}  # norm 5
    direction, _ = tx.update(gradient, tx.init(gradient), gradient)
    np.testing.assert_allclose(direction["w"] * 1e9, factor * gradient["w"], rtol=1e-5)


def test_adamw_equals_optax():
    cfg = OptimConfig(lr=0.1, weight_decay=0.3, clip_norm=1e9)
    x = {"w": jnp.array([1.0, -2.0])}
    g = {"w": jnp.array([0.5, 0.1])}
    direction, _ = make_optimizer(cfg).update(g, make_optimizer(cfg).init(x), x)
    reference = optax.adamw(0.1, weight_decay=0.3)
    expected, _ = reference.update(g, reference.init(x), x)
    np.testing.assert_allclose(-0.1 * direction["w"], expected["w"], rtol=1e-6)
