"""What a run would need: `python -m atod_jax.train --config=… --dry_run [--hardware=v5e-16]`.

Nothing is loaded and nothing is trained: models are their config.json (of a folder, or of the table
of published sizes for names such as Qwen/Qwen3-1.7B), devices are a line of a data sheet.
"""

import dataclasses
import json
import math

import jax

from atod_jax.config import Run, to_plain
from atod_jax.estimate import compiled, memory, pages
from atod_jax.estimate.hardware import CPU, Hardware, parse
from atod_jax.estimate.plan import Placed, Plan
from atod_jax.estimate.suggestions import suggest
from atod_jax.estimate.text import amount
from atod_jax.models import ModelConfig, config_from_hf
from atod_jax.models.checkpoint_io import read_config
from atod_jax.models.sizes import SIZES
from atod_jax.run import layouts
from atod_jax.run.models import fresh_config, local_path
from atod_jax.run.parts import algorithm
from atod_jax.sharding import MESH_AXES


def main(cfg: Run, hardware_name: str) -> None:
    """Prints the resolved config, how arrays are placed, memory, time, and whether it fits.

    Raises:
      ValueError: it does not fit; names what to change.
    """
    hardware = parse(hardware_name, cpus=jax.device_count())
    plan = plan_of(cfg, hardware)
    print(json.dumps(to_plain(cfg), indent=2))
    print(pages.placement(plan))
    print(pages.memory_report(plan, hardware))
    if hardware.chip is CPU:
        print(pages.compiled_report(plan, compiled.measure(plan)))
    print(pages.time_report(plan, hardware, cfg.total_steps))
    require_fit(plan, hardware)


def plan_of(cfg: Run, hardware: Hardware) -> Plan:
    """The shapes of one iteration of a config on some hardware.

    Raises:
      ValueError: a mesh does not fit its devices, or the batch a mesh.
    """
    shapes = layouts.shapes_of(cfg, hardware.count)
    require_devices(cfg, shapes, hardware)
    layouts.require_rows(cfg, shapes)
    our_rules, their_rules = (
        tuple(model.rules.table().items()) for model in (cfg.student, cfg.teacher)
    )
    model = student_config(cfg)
    student = Placed(model, _mesh(shapes.student), our_rules, adapters=cfg.student.lora_rank)
    teacher = teacher_config(cfg, model)
    return Plan(
        student=student,
        sampling=dataclasses.replace(student, mesh=_mesh(shapes.sampling)),
        teacher=teacher and Placed(teacher, _mesh(shapes.teacher), their_rules, cfg.teacher.dtype),
        reserved=cfg.teacher.devices > 0,
        scored_by=scored_by(cfg),
        exact=algorithm(cfg).teacher.exact_kl,
        episodes=cfg.rollout.tasks * cfg.rollout.group,
        eval_slots=cfg.eval.slots,
        turns=cfg.env.max_turns,
        prompt=cfg.sampling.prompt_buckets[-1],
        response=cfg.sampling.max_new_tokens,
        micro_rows=cfg.packing.micro_rows,
        minibatch_rows=cfg.packing.minibatch_rows,
        platform=hardware.platform,
        sampled=cfg.sampling.rows,
        plays=cfg.rollout.source == "student",
    )


def _mesh(shape: layouts.Shape) -> tuple[tuple[str, int], ...]:
    return tuple((axis, shape[axis]) for axis in MESH_AXES)


def require_devices(cfg: Run, shapes: layouts.Shapes, hardware: Hardware) -> None:
    """Every mesh has exactly the devices that are there for it.

    Raises:
      ValueError: one has more or fewer.
    """
    reserved = cfg.teacher.devices
    ours = hardware.count - reserved
    there = {"mesh": ours, "sampling.mesh": ours, "teacher.mesh": reserved or ours}
    for (key, have), shape in zip(there.items(), shapes, strict=True):
        needed = math.prod(shape.values())
        if needed != have:
            left = f", {have} of them for this mesh" if reserved else ""
            raise ValueError(
                f"{key} {dict(shape)} needs {needed} devices, --hardware has {hardware}{left}; "
                f"set one axis to -1, e.g. --config.{key}.data=1 --config.{key}.fsdp=-1"
            )


def scored_by(cfg: Run) -> str:
    """Whose statistics an algorithm takes for the teacher's: teacher, student, or "" for none."""
    named = algorithm(cfg)
    if not named.needs_teacher(0):
        return ""
    return "student" if named.teacher.self_teacher else "teacher"


def student_config(cfg: Run) -> ModelConfig:
    """The student's architecture, from its folder, its name, or student.fresh."""
    if cfg.student.fresh.hidden_size:
        return fresh_config(cfg.student)[1]
    student = _architecture(cfg.student.path, "student.path", cfg.student.dtype)
    return dataclasses.replace(student, remat=cfg.student.remat)


def teacher_config(cfg: Run, student: ModelConfig) -> ModelConfig | None:
    """The teacher's architecture with as many ids as the student's; None without a teacher."""
    if not cfg.teacher.path:
        return None
    compute = "bfloat16" if cfg.teacher.dtype == "int8" else cfg.teacher.dtype
    teacher = _architecture(cfg.teacher.path, "teacher.path", compute)
    return dataclasses.replace(teacher, vocab_size=student.vocab_size)


def _architecture(name: str, key_name: str, dtype: str) -> ModelConfig:
    folder, published = local_path(name, "config.json"), name.rpartition("/")[2]
    if folder:
        return read_config(folder, dtype=dtype)
    if published in SIZES:
        return config_from_hf(SIZES[published], dtype=dtype)
    raise FileNotFoundError(
        f"{key_name}={name!r}: no folder with a config.json there, and not one of the published "
        f"sizes {', '.join(SIZES)}; copy its config.json into a folder and name that"
    )


def require_fit(plan: Plan, hardware: Hardware) -> None:
    """Compares the peak of every kind of device with its memory.

    Raises:
      ValueError: it is larger.
    """
    kind, have = memory.largest(plan), hardware.chip.memory
    phase, needed = kind.peak
    if needed <= have:
        return
    parts = {**kind.resident, **kind.phases[phase]}
    largest = max(parts, key=parts.__getitem__)
    options, changed = suggest(plan, have)
    flags = " ".join(f"--config.{key}={value}" for key, value in options.items())
    then = amount(memory.peak(changed)[1])
    if memory.peak(changed)[1] <= have:
        advice = f"it fits ({then}) with {flags}"
    else:
        advice = f"even with {flags or 'smaller pieces'} it needs {then}; take more devices"
    where = f"device of the {kind.whose}'s {kind.devices}" if kind.whose else "device"
    raise ValueError(
        f"does not fit {hardware}: needs {amount(needed)} of {amount(have)} per {where} in the "
        f"{phase}, most of it {largest} ({amount(parts[largest])}); {advice}"
    )
