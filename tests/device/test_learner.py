"""The update: equal to a plain full-batch gradient, however the batch is cut or padded."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import pooled
from toy_update import (
    HEAD,
    MODEL,
    PLENTY,
    N,
    R,
    assert_trees_close,
    log_probs,
    make_batch,
    plain_loss,
)

from atod_jax.core.fused import TeacherHead
from atod_jax.core.losses import LossConfig
from atod_jax.device.learner import Piece, init_state, make_update, minibatches
from atod_jax.device.lines import Room, places_of
from atod_jax.device.optim import OptimConfig, make_learning_rate, make_optimizer
from atod_jax.device.scoring import join, make_score, split
from atod_jax.types import TurnBatch

LOSS = LossConfig()


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda x: 2 * x, MODEL.init(jax.random.key(0)))


@functools.cache
def plain_update(loss):
    """The update of plain gradient descent with rate 1, compiled once per shape."""
    tx = optax.identity()
    rate = lambda step: jnp.float32(1.0)  # noqa: E731
    return make_update(MODEL, tx, learning_rate=rate, loss=loss, head=HEAD)


def one_update(params, *pieces, room=PLENTY, loss=LOSS):
    state = init_state(MODEL, params, tx=optax.identity())
    new, means = plain_update(loss)(state, pieces, room=room)
    grads = jax.tree.map(lambda a, b: a - b, params, new.params)
    return grads, {name: mean.value() for name, mean in pooled(means).items()}


def cut(piece, pieces):
    """A piece as several."""
    parts = split((piece.rows, piece.signal, piece.share), pieces=pieces)
    return [Piece(*part) for part in parts]


@pytest.mark.parametrize("surrogate", ["ppo", "gspo"])
def test_neither_micro_batches_nor_lines_nor_padding_nor_order_change_the_gradient(
    params, surrogate
):
    loss = LossConfig(surrogate=surrogate)
    want, metrics = one_update(params, make_batch(), loss=loss)
    order = np.random.default_rng(3).permutation(N)
    others = {
        "2 micro-batches": cut(make_batch(), 2),
        "8 micro-batches": cut(make_batch(), 8),
        "2 rows a line": [make_batch(per_line=2)],
        "4 rows a line, in 2": cut(make_batch(per_line=4), 2),
        "other neighbours": [make_batch(per_line=4, order=order)],
        "padding": [make_batch(padding=8)],
        "padding in lines": cut(make_batch(padding=8, per_line=4, order=order), 3),
    }
    for name, pieces in others.items():
        grads, got = one_update(params, *pieces, loss=loss)
        assert_trees_close(grads, want)
        assert got == pytest.approx(metrics, rel=1e-5), name


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
def test_minibatch_gradients_average_to_the_gradient_of_the_batch(params, mode):
    rows, signal, _, _ = make_batch()
    batch = TurnBatch(rows=rows, returns=jnp.zeros(N), group=jnp.zeros(N, jnp.int32))
    (whole,) = minibatches(batch, signal, minibatch=[0], aggregation=mode)
    parts = minibatches(batch, signal, minibatch=[0, 0, 1, -1], aggregation=mode)
    assert [len(pieces) for pieces in parts] == [2, 1]
    parts = minibatches(batch, signal, minibatch=[0, 0, 1, 1], aggregation=mode)
    grads = [one_update(params, *pieces)[0] for pieces in parts]
    mean = jax.tree.map(lambda *g: sum(g) / len(g), *grads)
    assert_trees_close(mean, one_update(params, *whole)[0])


@pytest.mark.parametrize("room", [Room(line=16, head=48), Room(line=13, head=64)])
def test_room_for_the_action_tokens_does_not_change_the_gradient(params, room):
    piece = make_batch(per_line=4)
    tokens = np.asarray(piece.rows.action_mask).reshape(4, -1).sum(axis=1)
    assert tokens.max() == 13
    assert tokens.sum() <= 48
    grads, metrics = one_update(params, piece, room=room)
    want, plain = one_update(params, piece)
    assert_trees_close(grads, want)
    assert metrics == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("room", [Room(line=16, head=24), Room(line=8, head=64)])
def test_too_little_room_makes_the_loss_nan(params, room):
    _, metrics = one_update(params, make_batch(per_line=4), room=room)
    assert np.isnan(metrics["loss/total"])


def test_room_is_the_smallest_share_that_holds_every_line_and_device():
    tokens = 64 * np.array([3, 9, 0, 8, 1, 2, 16, 0])
    assert Room.of(tokens, most=4096, micro_lines=4, shards=1) == (1024, 2048)
    assert Room.of(tokens, most=4096, micro_lines=4, shards=2) == (1024, 1024)
    assert Room.of(tokens, most=1024, micro_lines=8, shards=1) == (1024, 4096)
    assert Room.of(tokens * 0, most=64, micro_lines=4, shards=2) == (64, 128)  # few at any rate


def test_an_exact_kl_moves_the_student_to_the_teacher(params):
    """The gradient of KL(student || teacher) from its states and head, against full logits."""
    rows, signal, share, _ = make_batch()
    teacher = MODEL.init(jax.random.key(5))
    states = make_score(MODEL, HEAD, keep_states=True)(teacher, rows, room=PLENTY).states
    zero = jnp.zeros_like(share)
    signal = signal.replace(advantage=zero, ce_weight=zero, kl_weight=zero + 1)
    head = TeacherHead(states, MODEL.head(teacher))

    def plain_kl(p):
        ours, theirs = log_probs(p, rows), jax.lax.stop_gradient(log_probs(teacher, rows))
        return jnp.sum(share[..., None] * jnp.exp(ours) * (ours - theirs))

    value, expected = jax.jit(jax.value_and_grad(plain_kl))(params)
    grads, metrics = one_update(params, Piece(rows, signal, share, head))
    assert metrics["loss/total"] == pytest.approx(float(value), rel=1e-5)
    assert_trees_close(grads, expected)


def test_minibatches_share_the_matrix_of_a_teacher():
    rows, signal, _, _ = make_batch()
    batch = TurnBatch(rows=rows, returns=jnp.zeros(N), group=jnp.zeros(N, jnp.int32))
    states = jnp.arange(N * R * 3.0).reshape(N, R, 3)
    head = TeacherHead(states, jnp.ones((5, 3)))
    options = {"minibatch": [0, 1], "aggregation": "token-mean"}
    pieces = [p for (p,) in minibatches(batch, signal, **options, teacher=head)]
    assert all(piece.teacher.matrix is head.matrix for piece in pieces)
    np.testing.assert_array_equal(jnp.concatenate([p.teacher.states for p in pieces]), states)
    assert [p.teacher for (p,) in minibatches(batch, signal, **options)] == [None, None]


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


def test_pieces_are_joined_again_with_zeros_for_the_empty_ones():
    x = {"a": jnp.arange(24).reshape(12, 2), "b": jnp.arange(6)}
    pieces = split(x, pieces=3)
    assert pieces[1]["a"].tolist() == x["a"][4:8].tolist()
    assert_trees_close(join(pieces), x)
    assert join(pieces[:2], empty=1)["b"].tolist() == [0, 1, 2, 3, 0, 0]


def test_streams_go_to_the_places_of_a_line_and_back():
    rows = make_batch(padding=4, per_line=4).rows
    places = places_of(rows, 16)
    numbers = jnp.where(rows.action_mask, jnp.arange(20 * R).reshape(20, R) + 1, 0)
    np.testing.assert_array_equal(places.by_row(places.by_line(numbers), rows.action_mask), numbers)
    np.testing.assert_array_equal(
        places.by_line(rows.action)[places.used],  # what is fed next, where it is fed
        np.concatenate([rows.action[n][rows.action_mask[n]] for n in range(20)]),
    )
    tokens = jnp.pad(rows.lines.tokens, ((0, 0), (0, 1)))
    following = jnp.take_along_axis(tokens, places.column + 1, axis=1)
    row = np.where(places.used, places.row(R), -1)
    inside = (row >= 0) & (np.diff(row, axis=1, append=-1) == 0)  # the last is not fed
    np.testing.assert_array_equal(
        np.asarray(following)[inside], np.asarray(places.by_line(rows.action))[inside]
    )


def test_scores_depend_on_no_neighbour_and_no_padding(params):
    score = make_score(MODEL, HEAD)
    whole = score(params, make_batch().rows, room=PLENTY)
    for options in ({"padding": 8}, {"per_line": 2}, {"per_line": 4, "padding": 8}):
        other = score(params, make_batch(**options).rows, room=PLENTY)
        np.testing.assert_allclose(other.logp[:N], whole.logp, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(other.entropy[:N], whole.entropy, rtol=1e-5, atol=1e-6)
        assert not np.asarray(other.logp[N:]).any()


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
