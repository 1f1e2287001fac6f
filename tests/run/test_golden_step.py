"""One whole training step in a dozen numbers: rows, scores, signal, update.

The episodes are made of fixed ids, so that no draw can flip; models, prompts' shapes and options
are those of the quickstart. The numbers were taken from this test on a CPU.
"""

import jax
import numpy as np
import pytest
from runs import load_models, pooled, typed
from test_layouts import trajectories

from atod_jax.device.learner import minibatches
from atod_jax.run import parts
from atod_jax.run.batch import pack
from atod_jax.run.models import fresh_state
from atod_jax.run.scorers import SignalMaker
from configs import quickstart

GOLDEN = {
    "advantage/abs_sum": 188.879608,
    "opd/abs_mean": 1.79105312,
    "rl/abs_mean": 0.908518446,
    "mix/kappa": 0.88,
    "mix/rho": 1.13333333,
    "turn_weight/mean": 0.879791875,
    "kl/token": 1.26880224,
    "kl/verb": 1.26006305,
    "student/entropy": 3.03590231,
    "student/sampler_gap": 6.69432750,
    "loss/total": 0.853297174,
    "loss/nll": 9.67356710,
    "update/grad_norm": 27.1085663,
    "params/moved": 71.0203857,
}
LEGITIMATE = (
    "The numbers of a training step have changed. That is right only where the method, a default "
    "or the models were changed on purpose: then say so in CHANGELOG with old and new numbers and "
    "put the new ones here. A change of speed, layout or structure must not move them."
)


def one_step() -> dict[str, float]:
    c = quickstart.get_config()
    c.packing.minibatch_rows, c.eval.slots = 32, 8
    cfg = typed(c)
    layouts, student, teacher = load_models(c)
    mesh = layouts.student.mesh
    with jax.set_mesh(mesh):
        algorithm = parts.algorithm(cfg)
        state, update = fresh_state(cfg.optim, student), parts.make_update(cfg, student)
        make_signal = SignalMaker(cfg, mesh, student=student, teacher=teacher, algorithm=algorithm)
        packed = pack(cfg, trajectories(), student=student, step=0)
        _, signal = make_signal(3, state.params, packed=packed)
        numbers = dict(signal.diagnostics)
        for pieces in minibatches(
            packed.batch,
            signal,
            minibatch=packed.minibatch,
            aggregation=cfg.loss.aggregation,
        ):
            state, means = update(state, pieces, room=packed.room(mesh))
            numbers |= pooled(means)
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).sum(), student.params, state.params)
    return {name: mean.value() for name, mean in numbers.items()} | {
        "advantage/abs_sum": float(np.abs(np.asarray(signal.advantage)).sum()),
        "params/moved": float(sum(jax.tree.leaves(moved))),
    }


def test_a_training_step_is_what_it_was():
    numbers = one_step()
    changed = {
        name: (value, numbers.get(name))
        for name, value in GOLDEN.items()
        if numbers.get(name) != pytest.approx(value, rel=1e-4, abs=1e-6)
    }
    assert not changed, f"{LEGITIMATE}\n(name: old, new) {changed}"
