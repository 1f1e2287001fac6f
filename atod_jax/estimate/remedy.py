"""What to change when a plan does not fit, from what costs least to what costs most."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from atod_jax.estimate.memory import peak
from atod_jax.estimate.plan import Plan

Options = Mapping[str, Any]  # config key -> value


def remedy(plan: Plan, capacity: float) -> tuple[Options, Plan]:
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
    if plan.axis("data") > 1:
        mesh = dict(plan.mesh) | {"data": 1, "fsdp": plan.shards}
        whole = dataclasses.replace(plan, mesh=tuple(mesh.items()))
        if _divides(whole):
            yield {"mesh.data": 1, "mesh.fsdp": plan.shards}, whole
    if plan.student.remat != "full":
        student = dataclasses.replace(plan.student, remat="full")
        yield {"student.remat": "full"}, dataclasses.replace(plan, student=student)
    half = plan.micro_rows // 2
    if half and half % plan.shards == 0 and plan.micro_rows % 2 == 0:
        yield {"packing.micro_rows": half}, dataclasses.replace(plan, micro_rows=half)
    half = (plan.sampled or max(plan.episodes, plan.eval_slots)) // 2
    if half and half % plan.shards == 0:
        yield {"sampling.rows": half}, dataclasses.replace(plan, sampled=half)
    for key in ("teacher", "student"):
        model = getattr(plan, key)
        if model and model.dtype != "bfloat16":
            model = dataclasses.replace(model, dtype="bfloat16")
            yield {f"{key}.dtype": "bfloat16"}, dataclasses.replace(plan, **{key: model})


def _divides(plan: Plan) -> bool:
    """Whether the widths of all models divide over the fsdp axis."""
    models = [m for m in (plan.student, plan.teacher) if m]
    return math.gcd(*(m.hidden_size for m in models)) % plan.axis("fsdp") == 0
