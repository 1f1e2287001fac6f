"""What to change when a plan does not fit, from what costs least to what costs most."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from atod_jax.estimate.memory import peak
from atod_jax.estimate.plan import Placed, Plan, parameters

Options = dict[str, Any]  # config key -> value


def suggest(plan: Plan, capacity: float) -> tuple[Options, Plan]:
    """Options that bring the peak below `capacity` bytes per device, and the plan with them.

    Where none of them is left that helps, the plan returned still does not fit.
    """
    options: dict[str, Any] = {}
    while peak(plan)[1] > capacity:
        better = (c for c in _changes(plan) if peak(c[1])[1] < peak(plan)[1])
        change = next(better, None)
        if change is None:
            break
        options |= change[0]
        plan = change[1]
    return options, plan


def _changes(plan: Plan) -> Iterator[tuple[Options, Plan]]:
    """Single changes that are possible, with the plan that follows."""
    yield from _more_sharding(plan)
    if plan.student.model.remat != "full":
        yield {"student.remat": "full"}, _with_student(plan, remat="full")
    half = plan.micro_rows // 2
    shards = [p.shards for p in (plan.student, plan.teacher) if p]
    if half and not any(half % n for n in shards) and plan.micro_rows % 2 == 0:
        yield {"packing.micro_rows": half}, replace(plan, micro_rows=half)
    half = (plan.sampled or max(plan.episodes, plan.eval_slots)) // 2
    if half and half % plan.sampling.shards == 0:
        yield {"sampling.rows": half}, replace(plan, sampled=half)
    if plan.teacher and plan.teacher.model.dtype != "bfloat16":
        model = replace(plan.teacher.model, dtype="bfloat16")
        teacher = replace(plan.teacher, model=model, storage="bfloat16")
        yield {"teacher.dtype": "bfloat16"}, replace(plan, teacher=teacher)
    if plan.student.model.dtype != "bfloat16":
        yield {"student.dtype": "bfloat16"}, _with_student(plan, dtype="bfloat16")


def _more_sharding(plan: Plan) -> Iterator[tuple[Options, Plan]]:
    """The rows' devices all on the fsdp axis: of `mesh` and the layouts that follow it, then of
    those that have a mesh of their own."""
    follows = {"sampling": not plan.copies, "teacher": _shares_mesh(plan)}
    student = _sharded(plan.student)
    split = {
        "student": student,
        "sampling": _sharded(plan.sampling),
        "teacher": _sharded(plan.teacher),
    }
    together = {key: split[key] for key in split if follows.get(key, True)}
    if student and all(together.values()):
        # devices of its own have to be told apart from the new `mesh`
        pinned = _options("teacher.mesh", plan.teacher) if plan.reserved and plan.teacher else {}
        yield _options("mesh", student) | pinned, replace(plan, **together)
    for key, name in (("sampling", "sampling.mesh"), ("teacher", "teacher.mesh")):
        placed = split[key]
        if key not in together and placed:
            yield _options(name, placed), replace(plan, **{key: placed})


def _shares_mesh(plan: Plan) -> bool:
    return bool(plan.teacher) and not plan.reserved and plan.teacher.mesh == plan.student.mesh


def _sharded(placed: Placed | None) -> Placed | None:
    """The same with every copy's devices on the fsdp axis; None where there is nothing to gain or
    a width does not divide."""
    if placed is None or placed.axis("data") == 1:
        return None
    mesh = dict(placed.mesh) | {"data": 1, "fsdp": placed.shards}
    changed = replace(placed, mesh=tuple(mesh.items()))
    try:
        parameters(changed)
    except ValueError:
        return None
    return changed


def _options(name: str, placed: Placed) -> Options:
    """A mesh as config keys."""
    needed = ("data", "fsdp")
    return {f"{name}.{axis}": n for axis, n in placed.mesh if axis in needed or n > 1}


def _with_student(plan: Plan, **changes: Any) -> Plan:
    """Another form of the student's model, wherever it is."""
    model = replace(plan.student.model, **changes)
    return replace(
        plan,
        student=replace(plan.student, model=model),
        sampling=replace(plan.sampling, model=model),
    )
