"""Options that make a run smaller, the harmless ones first."""

from collections.abc import Iterator
from typing import Any

from atod_jax.config import Run
from atod_jax.estimate.phases import PLAYING, TEACHER_SCORING
from atod_jax.run.layouts import shapes_of, shards_of

Options = dict[str, Any]  # path -> value


def remedies(cfg: Run, phase: str, devices: int) -> Iterator[Options]:
    """Single changes that may help a phase that does not fit on so many devices."""
    shapes = shapes_of(cfg, devices)
    for key, shape in zip(("mesh", "sampling.mesh", "teacher.mesh"), shapes, strict=True):
        own = key == "mesh" or (shape != shapes.student or cfg.teacher.devices > 0)
        if own and shape["data"] > 1:
            yield {f"{key}.data": 1, f"{key}.fsdp": shape["data"] * shape["fsdp"]}
    if cfg.teacher.path and cfg.teacher.dtype == "float32":
        yield {"teacher.dtype": "bfloat16"}
    if cfg.student.dtype == "float32" and phase != TEACHER_SCORING:
        yield {"student.dtype": "bfloat16"}
    if cfg.student.remat != "full":
        yield {"student.remat": "full"}
    playing = phase in PLAYING
    half = min(cfg.sampling.rows, max(cfg.rollout.tasks * cfg.rollout.group, cfg.eval.slots)) // 2
    if playing and half and half % shards_of(shapes.sampling) == 0:
        yield {"sampling.rows": half}
    half = cfg.packing.micro_rows // 2
    divides = not any(half % shards_of(shape) for shape in (shapes.student, shapes.teacher))
    if not playing and half and 2 * half == cfg.packing.micro_rows and divides:
        yield {"packing.micro_rows": half}
