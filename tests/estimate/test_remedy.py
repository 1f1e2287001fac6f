"""What is advised when a run does not fit."""

import dataclasses

from toys import TOY, make_plan

from atod_jax.estimate.memory import peak
from atod_jax.estimate.remedy import remedy

MESH = {"data": 4}


def test_nothing_is_advised_where_it_fits():
    assert remedy(make_plan(), 1e9) == ({}, make_plan())


def test_cheap_changes_come_first_and_are_enough():
    plan = make_plan(dataclasses.replace(TOY, hidden_size=512), mesh=MESH)
    _, needed = peak(plan)
    options, changed = remedy(plan, 0.9 * needed)
    assert options == {"mesh.data": 1, "mesh.fsdp": 4}
    assert peak(changed)[1] <= 0.9 * needed


def test_rows_are_halved_as_long_as_they_divide():
    plan = make_plan(mesh=MESH, micro_rows=64, minibatch_rows=64, eval_slots=48, response=64)
    options, changed = remedy(plan, 0.0)
    assert options["packing.micro_rows"] == changed.micro_rows == 4
    assert options["student.dtype"] == changed.student.dtype == "bfloat16"
    assert peak(changed)[1] > 0


def test_fewer_prompts_at_a_time_where_sampling_is_the_peak():
    student = dataclasses.replace(TOY, remat="full")
    plan = make_plan(student, mesh={"fsdp": 4}, eval_slots=512, prompt=100)
    options, changed = remedy(plan, 0.3 * peak(plan)[1])
    assert options == {"sampling.rows": changed.sampled}
    assert 0 < changed.sampled < 256
