"""Bytes per device: against hand-computed numbers, and against what XLA reports."""

import dataclasses

import jax
import pytest
from toys import TOY, TOY_LAYER, TOY_PARAMETERS, make_plan

from atod_jax.core.fused import Tiling
from atod_jax.estimate import memory
from atod_jax.estimate.compiled import measure
from atod_jax.estimate.plan import count, parameters
from atod_jax.models import ModelConfig, config_from_hf
from atod_jax.models.sizes import published

MEDIUM = ModelConfig(
    vocab_size=4096,
    hidden_size=256,
    num_layers=6,
    num_heads=8,
    num_kv_heads=4,
    head_dim=32,
    intermediate_size=768,
    rope_theta=1e4,
    rms_eps=1e-6,
    tie_embeddings=True,
)
FULL = dataclasses.replace(MEDIUM, remat="full")


def test_parameters_of_a_toy():
    assert count(TOY) == TOY_PARAMETERS
    pieces = {p.name: p for p in parameters(TOY, make_plan(mesh={"fsdp": 2, "tensor": 1}).mesh)}
    # [layers, embed, mlp]: the width over fsdp
    assert pieces["layers/mlp/up/kernel"].local_shape == (1, 4, 16)
    assert pieces["norm/scale"].local_shape == (8,)


def test_a_large_student_on_one_device_and_on_sixteen():
    student = config_from_hf(published("Qwen3-1.7B"))
    size = 1_720_574_976
    parts = memory.resident(make_plan(student))
    # float32 weights twice (trained, and as they were at the start), two float32 moments
    assert list(parts.values()) == [4 * size, 4 * size, 8 * size]
    norms = 28 * (2048 + 2048 + 128 + 128) + 2048  # whole on every device
    parts = memory.resident(make_plan(student, mesh={"fsdp": 16}))
    assert parts["Adam moments"] == 8 * ((size - norms) // 16 + norms)


def test_a_teacher_is_stored_in_its_own_type():
    teacher = dataclasses.replace(TOY, dtype="bfloat16")
    assert memory.resident(make_plan(teacher=teacher))["teacher weights"] == 2 * TOY_PARAMETERS
    plan = make_plan(teacher=teacher, teacher_int8=True)
    matrices = 2 * (TOY_LAYER - 24)  # all but the norms
    assert memory.resident(plan)["teacher weights"] == 2 * TOY_PARAMETERS - matrices


def test_the_cache_of_a_toy():
    # 8 rows; keys and values of 2 layers, 1 head of 4 numbers of 4 bytes; 10 columns, then 15
    parts = memory.sampling(make_plan(), TOY, 8)
    assert parts["KV cache"] == 8 * 2 * 2 * 4 * 4 * (10 + 15)
    # scores of 2 heads over 10 x 10 columns, in float32, and their softmax
    assert parts["attention scores"] == 8 * 2 * 100 * (4 + 4)


def test_rows_sampled_later_need_no_cache_now():
    whole, half = (memory.sampling(make_plan(sampled=n), TOY, 8)["KV cache"] for n in (0, 4))
    assert whole == 2 * half


def test_what_is_kept_for_the_backward_pass():
    plan = make_plan()
    kept = {
        remat: memory.update(make_plan(dataclasses.replace(TOY, remat=remat)))["saved activations"]
        for remat in ("none", "dots", "full")
    }
    # one layer before the last; 4 rows of 15 columns of width 8, 4 bytes each
    assert kept["full"] == 4 * plan.columns * 8 * 4
    # and the products q 8, k 4, v 4, o 8, gate 16, up 16, down 8
    assert kept["dots"] == 4 * plan.columns * (8 + 8 + 4 + 4 + 8 + 16 + 16 + 8) * 4
    assert kept["none"] > kept["dots"]


def test_gathered_weights_are_a_layer_and_the_table():
    assert memory.gathered(make_plan(), TOY) == 0
    assert memory.gathered(make_plan(mesh={"fsdp": 8}), TOY) == 4 * (TOY_LAYER + 800 + 8)


def test_the_peak_is_the_largest_phase():
    plan = make_plan(eval_slots=512)
    phase, needed = memory.peak(plan)
    assert phase == "evaluation"
    stays, adds = memory.resident(plan), memory.phases(plan)["evaluation"]
    assert needed == sum(stays.values()) + sum(adds.values())


def test_an_expert_needs_no_rollout():
    assert "rollout" not in memory.phases(make_plan(plays=False))


@pytest.mark.parametrize(
    ("student", "mesh", "prompt"),
    [
        (FULL, {"fsdp": 8}, 192),
        (MEDIUM, {"data": 8}, 192),
        (FULL, {"fsdp": 2, "tensor": 4}, 192),
        (FULL, {"fsdp": 8}, 960),
    ],
    ids=["fsdp", "data", "tensor", "long"],
)
def test_xla_needs_between_half_of_the_estimate_and_all_of_it(student, mesh, prompt):
    plan = make_plan(
        student,
        mesh=mesh,
        episodes=32,
        prompt=prompt,
        response=64,
        micro_rows=16,
        minibatch_rows=32,
        tiling=Tiling(backend="tiles"),
    )
    assert jax.device_count() == 8
    ours, measured = memory.phases(plan), measure(plan)
    for name, program in measured.items():
        estimate = sum(ours[name].values())
        assert 0.5 * estimate <= program.temporary <= 1.05 * estimate, (name, program, ours[name])
    weights = 4 * sum(p.local_size for p in parameters(student, plan.mesh))
    # weights and two moments; the rows are small
    assert 3 * weights < measured["update"].arguments < 3.2 * weights
