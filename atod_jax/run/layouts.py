"""The layouts of a run: the student in training, the student as it samples, the teacher.

All three may be one mesh. The student may sample on another shape of its own devices, the teacher
may have another shape, other rules, and reserved devices.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from atod_jax.config.sections import Run
from atod_jax.sharding import Layout, MeshShape, make_mesh
from atod_jax.types import BATCH_AXES

Shape = Mapping[str, int]  # mesh axis -> devices


class Layouts(NamedTuple):
    """The layouts of a run; those that are equal share one mesh."""

    student: Layout  # in training; batches live here
    sampling: Layout  # the same devices in the same order
    teacher: Layout


class Shapes(NamedTuple):
    """The sizes of the mesh axes, before there are devices."""

    student: Shape
    sampling: Shape
    teacher: Shape


def shapes_of(cfg: Run, devices: int) -> Shapes:
    """The mesh shapes of a run on `devices` devices, an axis of -1 filled with what is left.

    Raises:
      ValueError: several axes are -1, or the teacher's reserved devices leave none for the student.
    """
    reserved = cfg.teacher.devices
    if reserved and not reserved < devices:
        raise ValueError(
            f"teacher.devices={reserved}: there are {devices} devices and the student needs some; "
            f"use less than {devices}, or 0 to share them all"
        )
    ours, theirs = devices - reserved, reserved or devices
    return Shapes(
        student=_filled("mesh", cfg.mesh, ours),
        sampling=_filled(*_first_set("sampling.mesh", cfg.sampling.mesh, cfg), ours),
        teacher=_filled(*_first_set("teacher.mesh", cfg.teacher.mesh, cfg), theirs),
    )


def layouts_of(cfg: Run, devices: np.ndarray | None = None) -> Layouts:
    """The meshes of a run, checked against its batch sizes.

    Args:
      cfg: of the run.
      devices: that it has; None: those of all processes.

    Raises:
      ValueError: a shape does not fit the devices, or a batch does not fit a shape.
    """
    shapes = shapes_of(cfg, jax.device_count() if devices is None else devices.size)
    our_rules, their_rules = cfg.student.rules.table(), cfg.teacher.rules.table()
    reserved = cfg.teacher.devices
    ours, theirs = divided(reserved, devices) if reserved else (devices, devices)
    student = make_mesh(shapes.student, ours)
    sampling = _same_or(shapes.sampling, student)
    teacher = make_mesh(shapes.teacher, theirs) if reserved else _same_or(shapes.teacher, student)
    require_rows(cfg, shapes)
    return Layouts(
        Layout(student, our_rules), Layout(sampling, our_rules), Layout(teacher, their_rules)
    )


def require_rows(cfg: Run, shapes: Shapes) -> None:
    """Rows of a pass must divide over the data axes of the meshes on which they are scored.

    Raises:
      ValueError: names the key, the value and the next value that fits.
    """
    rows, each = cfg.packing.micro_rows, line_shards(shapes)
    for key, shape in (("mesh", shapes.student), ("teacher.mesh", shapes.teacher)):
        shards = shards_of(shape)
        if rows % shards:
            raise ValueError(
                f"packing.micro_rows={rows} is not divisible by the {shards} data shards of {key} "
                f"{dict(shape)}; use {-(-rows // each) * each} or lower {key}.data/{key}.fsdp"
            )


def shards_of(shape: Shape) -> int:
    """Into how many pieces a mesh of this shape splits rows."""
    return math.prod(shape[axis] for axis in BATCH_AXES)


def line_shards(shapes: Shapes) -> int:
    """Lines of a pass come in multiples of this: every mesh that scores them takes equal parts."""
    return math.lcm(shards_of(shapes.student), shards_of(shapes.teacher))


def divided(reserved: int, devices: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The student's devices and the teacher's `reserved`: the last ones of every process.

    So every process takes part in both and hands over its own rows.

    Raises:
      ValueError: the processes cannot give equally many and keep some.
    """
    there = jax.devices() if devices is None else devices.flat
    ordered = sorted(there, key=lambda device: (device.process_index, device.id))
    processes = ordered[-1].process_index + 1
    local = len(ordered) // processes
    each, rest = divmod(reserved, processes)
    if rest or each >= local:
        raise ValueError(
            f"teacher.devices={reserved}: every one of the {processes} processes gives equally "
            f"many of its {local} devices and keeps some; use a multiple of {processes} below "
            f"{processes * local}, or start fewer processes with more devices each"
        )
    by_process = np.array(ordered).reshape(processes, -1)
    return by_process[:, :-each].reshape(-1), by_process[:, -each:].reshape(-1)


def _first_set(key_name: str, sizes: MeshShape, cfg: Run) -> tuple[str, MeshShape]:
    return (key_name, sizes) if any(vars(sizes).values()) else ("mesh", cfg.mesh)


def _filled(key_name: str, sizes: MeshShape, devices: int) -> Shape:
    shape = {axis: size or 1 for axis, size in vars(sizes).items()}
    open_axes = [axis for axis, size in shape.items() if size == -1]
    if len(open_axes) > 1:
        raise ValueError(f"{key_name}: axes {open_axes} are all -1; one can take what is left")
    for axis in open_axes:
        shape[axis] = max(1, devices // math.prod(n for name, n in shape.items() if name != axis))
    return shape


def _same_or(shape: Shape, mesh: jax.sharding.Mesh) -> jax.sharding.Mesh:
    return mesh if dict(mesh.shape) == dict(shape) else make_mesh(shape, mesh.devices.reshape(-1))
