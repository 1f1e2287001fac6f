"""Runs on other layouts give the numbers of one mesh: a teacher with a mesh, rules or devices of
its own, a student that plays on another shape than it trains on."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from runs import (
    TOKENIZER,
    load_models,
    save_random_model,
    start,
    steps_that_compile,
    typed,
)
from runs import without_times as numbers

from atod_jax.episodes.render import load_tokenizer
from atod_jax.run import layouts
from atod_jax.run import models as run_models
from configs import household

RESERVED = {"mesh.data": 2, "mesh.fsdp": 2, "teacher.devices": 4}
LAYOUTS = {
    "another shape for the teacher": {"mesh.fsdp": -1, "mesh.data": 1, "teacher.mesh.data": 8},
    "a teacher split by width under its own rules": {
        "teacher.mesh.data": 4, "teacher.mesh.tensor": 2, "teacher.rules.embed": "tensor",
        "teacher.rules.vocab": "", "teacher.rules.mlp": "", "teacher.rules.heads": "",
        "teacher.rules.kv_heads": "",
    },
    "a teacher on devices of its own": RESERVED | {"teacher.mesh.fsdp": 4},
    "the same, playing on another shape": RESERVED
    | {"teacher.mesh.data": 2, "teacher.mesh.tensor": 2, "sampling.mesh.data": 4},
    "playing on another shape": {
        "mesh.data": 1, "mesh.fsdp": -1, "sampling.mesh.data": 4, "sampling.mesh.tensor": 2,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Random models whose widths divide over the axes used here."""
    folder = tmp_path_factory.mktemp("models")
    ids = len(load_tokenizer(str(TOKENIZER)))
    sizes = {"vocab_size": -(-ids // 8) * 8, "num_attention_heads": 4, "num_key_value_heads": 2}
    student = save_random_model(folder / "student", **sizes)
    sizes["tie_word_embeddings"] = False
    return student, save_random_model(folder / "teacher", hidden=24, seed=1, **sizes)


def layouts_of(c):
    return layouts.layouts_of(typed(c))


def make_config(models, changes):
    c = household.get_config("algo=atod,smoke")
    c.student.path, c.teacher.path = models
    c.total_steps, c.env.max_turns, c.eval.every = 2, 3, 0
    c.sampling.prompt_buckets = (160,)
    c.rollout.tasks, c.rollout.group = 2, 4
    c.packing.minibatch_rows, c.packing.micro_rows = 16, 8
    c.eval.tasks = c.eval.final_tasks = c.eval.slots = 8
    c.eval.temperatures = (1.0,)
    c.algorithm.atod.token_signal = "exact"  # the teacher's states and head go to the student
    c.update_from_flattened_dict(changes)
    return c


@pytest.fixture(scope="module")
def on_one_mesh(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    start(make_config(models, {}), str(folder))
    return numbers(folder)


SLOW = ("another shape for the teacher", "a teacher on devices of its own")  # parts of the others


@pytest.mark.parametrize(
    "layout", [pytest.param(x, marks=[pytest.mark.slow] * (x in SLOW)) for x in LAYOUTS]
)
def test_a_run_is_the_same_on_every_layout(layout, models, on_one_mesh, tmp_path):
    start(make_config(models, LAYOUTS[layout]), str(tmp_path))
    run = numbers(tmp_path)
    assert len(run) == len(on_one_mesh)
    for here, there in zip(run, on_one_mesh):
        assert here == pytest.approx(there, rel=1e-5, abs=1e-5)
    assert [r["loss/teacher_kl"] for r in run if "loss/teacher_kl" in r]


def test_steady_state_does_not_recompile(models, tmp_path):
    layout = "the same, playing on another shape"
    compiled = steps_that_compile(make_config(models, LAYOUTS[layout]), tmp_path)
    assert compiled
    assert not [s for s in compiled if s in (2, 3, 4)]


def test_every_model_is_where_it_belongs(models):
    places = layouts_of(make_config(models, LAYOUTS["the same, playing on another shape"]))
    with jax.set_mesh(places.student.mesh):
        _, student, teacher = load_models(make_config(models, {}), places)
        playing = run_models.to_sampling(student, student.params)

    def devices(params):
        return set.union(*(x.sharding.device_set for x in jax.tree.leaves(params)))

    def gate(block):
        return block["mlp"]["gate"]["kernel"].addressable_shards[0].data.shape

    first, last = jax.devices()[:4], jax.devices()[4:]
    assert devices(student.params) == devices(playing) == set(first)
    assert devices(teacher.params) == set(last)
    assert gate(student.params["last"]) == (8, 32)  # embed over fsdp
    assert gate(playing["blocks"][-1]) == (16, 32)
    assert gate(teacher.params["blocks"][-1]) == (24, 16)  # mlp over tensor
    jax.tree.map(np.testing.assert_array_equal, playing, student.lm.serve(student.params))


def test_adapters_play_where_their_weights_do(models):
    cfg = make_config(models, LAYOUTS["playing on another shape"] | {"student.lora_rank": 2})
    places = layouts_of(cfg)
    with jax.set_mesh(places.student.mesh):
        _, student, _ = load_models(cfg, places)
        playing = run_models.to_sampling(student, student.params)
    gate = playing["blocks"][-1]["mlp"]["gate"]
    shapes = {name: x.addressable_shards[0].data.shape for name, x in gate.items()}
    assert shapes == {"kernel": (16, 16), "lora_a": (16, 2), "lora_b": (2, 16)}  # mlp over tensor
    jax.tree.map(np.testing.assert_array_equal, playing, student.lm.serve(student.params))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher.devices": 8}, "teacher.devices=8: there are 8 devices"),
        ({"teacher.mesh.data": 3}, "needs 3 devices, there are 8"),
        ({"teacher.devices": 2, "teacher.mesh.fsdp": 4}, "needs 4 devices, there are 2"),
        ({"sampling.mesh.data": -1, "sampling.mesh.fsdp": -1}, "sampling.mesh: axes"),
        (
            {"teacher.devices": 3, "teacher.mesh.data": 3, "mesh.tensor": 5, "mesh.data": 1},
            "rows=8 is not divisible by the 3",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(changes, message, models):
    with pytest.raises(ValueError, match=message):
        layouts_of(make_config(models, changes | {"packing.micro_rows": 8}))


@pytest.mark.parametrize(("processes", "local", "reserved"), [(3, 4, 4), (8, 1, 8)])
def test_every_process_has_devices_for_both(processes, local, reserved):
    devices = np.array(
        [SimpleNamespace(process_index=n // local, id=n) for n in range(processes * local)]
    )
    with pytest.raises(ValueError, match=f"use a multiple of {processes} below"):
        layouts.divided(reserved, devices)


def test_devices_without_a_teacher_are_refused(models):
    cfg = make_config(models, {"teacher.devices": 4, "teacher.path": ""})
    with pytest.raises(ValueError, match=r"teacher\.devices=.*together with teacher\.path"):
        typed(cfg)


def test_a_rule_names_a_mesh_axis(models):
    cfg = make_config(models, {"teacher.rules.embed": "fdsp"})
    with pytest.raises(ValueError, match=r"teacher.rules.embed='fdsp': choose from '', data, fsdp"):
        typed(cfg)
