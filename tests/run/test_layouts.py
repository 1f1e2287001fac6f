"""One whole training step, the same on one device and on every layout of eight."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from acting import act_in_order
from runs import pooled

from atod_jax.algorithms import atod
from atod_jax.algorithms.base import Step
from atod_jax.core.fused import HeadConfig
from atod_jax.core.losses import LossConfig
from atod_jax.device.learner import init_state, make_update, minibatches
from atod_jax.device.lines import Room
from atod_jax.device.policy import Policy
from atod_jax.device.sampling import SamplingConfig
from atod_jax.device.scoring import make_score
from atod_jax.episodes.packing import Form, pack_turns
from atod_jax.models import AXES, ModelConfig, build
from atod_jax.records import StopReason, Task, Trajectory, Turn
from atod_jax.sharding import RULES, make_mesh, param_shardings, place, replicate, to_host

V, P, R, ROWS = 40, 12, 5, 32
DENSE = ModelConfig(
    vocab_size=V, hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=8,
    intermediate_size=32, rope_theta=1e4, rms_eps=1e-6, tie_embeddings=True, qk_norm=True,
)  # fmt: skip
TEACHER = ModelConfig(
    vocab_size=V, hidden_size=24, num_layers=3, num_heads=4, num_kv_heads=4, head_dim=8,
    intermediate_size=32, rope_theta=1e4, rms_eps=1e-6, tie_embeddings=False, qk_norm=True,
)  # fmt: skip
MIXTURE = dataclasses.replace(DENSE, num_experts=4, experts_per_token=2)
LAYOUTS = {
    "8 data": (DENSE, {"data": 8}),
    "8 fsdp": (DENSE, {"fsdp": 8}),
    "2 fsdp x 4 tensor": (DENSE, {"fsdp": 2, "tensor": 4}),
    "4 fsdp x 2 expert": (MIXTURE, {"fsdp": 4, "expert": 2}),
}


def trajectories():
    """Fixed episodes: 4 tasks x 4 rollouts of 1 to 3 turns of random ids."""
    rng = np.random.default_rng(0)

    def turn():
        action = rng.integers(1, V, rng.integers(1, R + 1)).astype(np.int32)
        return Turn(
            prompt=rng.integers(1, V, rng.integers(3, P + 1)).astype(np.int32),
            action=action,
            logp=rng.normal(-3, 0.2, len(action)).astype(np.float32),
            observation=str(rng.integers(5)),
            response="",
            command="",
            valid=bool(rng.random() < 0.8),
            reward=float(rng.random()),
        )

    return [
        Trajectory(
            task=Task(str(b // 4), "k", None), group=b // 4, success=False, stop=StopReason.done,
            turns=tuple(turn() for _ in range(rng.integers(1, 4))),
        )
        for b in range(16)
    ]  # fmt: skip


def one_step(student, teacher, mesh):
    """(metrics, gradient, sampled tokens, their log-probabilities) of a step, on the host."""
    form = Form(columns=2 * (P + R), response_columns=R, rows=2, micro_lines=8)
    whole, minibatch = pack_turns(
        trajectories(), form=form, minibatch_rows=ROWS, pad_id=0, rng=np.random.default_rng(1)
    )
    weights = [
        jax.tree.map(lambda x: 2 * x, build(config).init(jax.random.key(n)))
        for n, config in enumerate((student, teacher))
    ]
    if mesh is None:
        batch = jax.tree.map(jnp.asarray, whole)
    else:
        weights = [jax.device_put(w, param_shardings(w, AXES, RULES, mesh=mesh)) for w in weights]
        batch = whole.replace(
            rows=place(whole.rows, mesh),
            returns=replicate(whole.returns, mesh),
            group=replicate(whole.group, mesh),
        )
    head, room = HeadConfig(forbidden=(0,), block=16, mesh=mesh), Room(line=2 * R, head=ROWS * R)
    ours, theirs = (
        make_score(build(config), head)(w, batch.rows, room=room)
        for config, w in zip((student, teacher), weights)
    )
    signal = jax.jit(functools.partial(atod.signal, atod.Config()))(
        Step(batch, ours, theirs, jnp.int32(3))
    )
    (pieces,) = minibatches(batch, signal, minibatch=minibatch, aggregation="token-mean")
    update = make_update(
        build(student), optax.identity(), learning_rate=lambda step: jnp.float32(1.0),
        loss=LossConfig(), head=head,
    )  # fmt: skip
    fresh = init_state(build(student), weights[0], tx=optax.identity())
    state, metrics = update(fresh, pieces, room=room)
    gradient = jax.tree.map(lambda a, b: to_host(a) - to_host(b), weights[0], state.params)
    sampling = SamplingConfig(
        temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=R, prompt_buckets=(P,), slots=16,
        eos_ids=(1,), pad_id=0, vocab=V, forbidden=(0,),
    )  # fmt: skip
    prompts = [t.turns[0].prompt for t in trajectories()]
    policy = Policy(build(student), sampling, mesh)
    actions = act_in_order(policy, weights[0], prompts, key=jax.random.key(7))
    numbers = {name: mean.value() for name, mean in (pooled(metrics) | signal.diagnostics).items()}
    return numbers, gradient, [a.tokens for a in actions], [a.logp for a in actions]


def assert_same(step, reference):
    numbers, gradient, tokens, logp = step
    assert numbers == pytest.approx(reference[0], rel=1e-5, abs=1e-6)
    scale = max(float(np.abs(x).max()) for x in jax.tree.leaves(reference[1]))
    assert scale > 1e-3
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * scale),
        gradient,
        reference[1],
    )
    for ours, theirs in zip(tokens, reference[2], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(logp, reference[3], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@functools.cache
def on_one_device(student):
    return one_step(student, TEACHER, None)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_is_the_same_on_every_layout(layout):
    student, shape = LAYOUTS[layout]
    mesh = make_mesh(shape)
    with jax.set_mesh(mesh):
        step = one_step(student, TEACHER, mesh)
    assert_same(step, on_one_device(student))
