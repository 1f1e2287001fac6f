"""What is advised when a run does not fit."""

import dataclasses

from toys import TOY, make_plan, place

from atod_jax.estimate.memory import peak
from atod_jax.estimate.suggestions import suggest

MESH = {"data": 4}


def test_nothing_is_advised_where_it_fits():
    assert suggest(make_plan(), 1e9) == ({}, make_plan())


def test_cheap_changes_come_first_and_are_enough():
    plan = make_plan(dataclasses.replace(TOY, hidden_size=512), mesh=MESH)
    _, needed = peak(plan)
    options, changed = suggest(plan, 0.9 * needed)
    assert options == {"mesh.data": 1, "mesh.fsdp": 4}
    assert peak(changed)[1] <= 0.9 * needed


def test_rows_are_halved_as_long_as_they_divide():
    plan = make_plan(mesh=MESH, micro_rows=64, minibatch_rows=64, eval_slots=48, response=64)
    options, changed = suggest(plan, 0.0)
    assert options["packing.micro_rows"] == changed.micro_rows == 4
    assert options["student.dtype"] == changed.student.model.dtype == "bfloat16"
    assert peak(changed)[1] > 0


def test_fewer_prompts_at_a_time_where_sampling_is_the_peak():
    student = dataclasses.replace(TOY, remat="full")
    plan = make_plan(student, mesh={"fsdp": 4}, eval_slots=512, prompt=100)
    options, changed = suggest(plan, 0.3 * peak(plan)[1])
    assert options == {"sampling.rows": changed.sampled}
    assert 0 < changed.sampled < 256


def test_layouts_that_follow_the_mesh_change_with_it_and_others_by_their_own_keys():
    student = dataclasses.replace(TOY, hidden_size=512, num_kv_heads=2)
    shared = make_plan(student, mesh={"data": 4}, teacher=student)
    options, changed = suggest(shared, 0.8 * peak(shared)[1])
    assert options == {"mesh.data": 1, "mesh.fsdp": 4}
    assert changed.student.mesh == changed.sampling.mesh == changed.teacher.mesh

    deep = dataclasses.replace(student, num_layers=12, remat="full")
    playing = make_plan(deep, mesh={"fsdp": 4}, sampling={"data": 2, "tensor": 2}, eval_slots=256)
    options, changed = suggest(playing, 0.99 * peak(playing)[1])
    assert options == {"sampling.mesh.data": 1, "sampling.mesh.fsdp": 2, "sampling.mesh.tensor": 2}
    assert changed.student == playing.student

    alone = make_plan(
        student, mesh={"data": 4}, teacher=place(student, {"data": 2, "tensor": 2}), reserved=True
    )
    options, changed = suggest(alone, 0.9 * peak(alone)[1])
    teacher = {"teacher.mesh.data": 2, "teacher.mesh.fsdp": 1, "teacher.mesh.tensor": 2}
    assert options == {"mesh.data": 1, "mesh.fsdp": 4} | teacher
    assert changed.teacher == alone.teacher


def test_micro_batches_stay_divisible_over_the_teacher_s_devices():
    plan = make_plan(
        micro_rows=64, minibatch_rows=64, teacher=place(TOY, {"data": 16}), reserved=True
    )
    assert suggest(plan, 0.0)[0]["packing.micro_rows"] == 16
