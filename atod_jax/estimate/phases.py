"""The programs of an iteration on their devices, and what lies on these all the time."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from atod_jax.config import Run
from atod_jax.estimate import programs
from atod_jax.estimate.cost import Cost, estimated, of_executable
from atod_jax.estimate.hardware import Hardware
from atod_jax.estimate.programs import Program, Shape
from atod_jax.estimate.targets import seen_as
from atod_jax.models import LanguageModel, ModelConfig, build, config_from_hf, lora
from atod_jax.models.checkpoint_io import read_config
from atod_jax.models.sizes import SIZES
from atod_jax.run.layouts import layouts_of
from atod_jax.run.models import fresh_config, local_path
from atod_jax.run.parts import algorithm

PLAYING, UPDATE = "playing", "update"
STUDENT_SCORING, TEACHER_SCORING = "student scoring", "teacher scoring"


class Phase(NamedTuple):
    """One program of an iteration."""

    name: str
    program: Program
    whose: str  # devices: student | teacher; "" where both are on all
    beside: int  # bytes on each of them, for the whole run, that the program is not given
    times: int = 1  # per iteration
    steps: int = 0


class Compiled(NamedTuple):
    """A phase and what its program costs."""

    phase: Phase
    cost: Cost

    @property
    def needed(self) -> int:
        """Bytes on each of its devices."""
        return self.phase.beside + self.cost.memory.needed

    @property
    def seconds(self) -> float:
        """Of an iteration."""
        return (
            self.phase.times * self.cost.whole.seconds + self.phase.steps * self.cost.step.seconds
        )


def compiled(phase: Phase, hardware: Hardware) -> Compiled:
    """The phase with its program compiled for its devices; time stays 0 where nothing is known."""
    with jax.set_mesh(phase.program.mesh), seen_as(hardware.platform):
        executable = phase.program.lower().compile()
    if hardware.chip.flops:
        return Compiled(phase, estimated(executable, hardware.chip))
    return Compiled(phase, of_executable(executable, lambda kernel: 0.0))


def plan(cfg: Run, devices: np.ndarray) -> Sequence[Phase]:
    """The programs of the longest iteration there can be: every episode goes on to its last turn,
    prompts and actions are as long as they may be.

    Raises:
      ValueError: a mesh does not fit the devices, or the batch a mesh.
      FileNotFoundError: a model is neither a folder nor one of the published sizes.
    """
    layouts, (ours, theirs), named = layouts_of(cfg, devices), models(cfg), algorithm(cfg)
    rows = Shape(
        cfg.packing.minibatch_rows,
        cfg.sampling.prompt_buckets[-1],
        cfg.sampling.max_new_tokens,
        cfg.packing.micro_rows,
    )
    episodes = cfg.rollout.tasks * cfg.rollout.group
    turns = episodes * cfg.env.max_turns
    update = programs.update(ours, rows, layouts.student, loss=cfg.loss, optim=cfg.optim)
    score = programs.score(ours, rows, layouts.student)
    judge = theirs and programs.score(theirs, rows, layouts.teacher, dtype=cfg.teacher.dtype)
    # the weights at the start stay, for their evaluation and the KL to them
    start = ours.split(score.shapes()[0])[0]
    lying = {"student": update.given + programs.size(start), "teacher": judge.given if judge else 0}
    phases = []

    def add(name: str, program: Program, whose: str, **often: int) -> None:
        apart = cfg.teacher.devices > 0
        there = lying[whose] if apart else sum(lying.values())
        phases.append(Phase(name, program, whose * apart, there - program.given, **often))

    batches = math.ceil(turns / rows.rows)
    if cfg.rollout.source == "student":
        slots = min(cfg.sampling.rows or episodes, episodes)
        waves = math.ceil(turns / slots)
        playing = programs.play(ours, rows._replace(rows=slots), layouts.sampling)
        add(PLAYING, playing, "student", times=waves, steps=waves * playing.steps)
    add(STUDENT_SCORING, score, "student", times=batches)
    if named.needs_teacher(0) and named.teacher.self_teacher:
        add(TEACHER_SCORING, score, "student", times=batches)
    elif named.needs_teacher(0) and judge:
        add(TEACHER_SCORING, judge, "teacher", times=batches)
    add(UPDATE, update, "student", times=batches)
    return phases


def models(cfg: Run) -> tuple[LanguageModel, LanguageModel | None]:
    """Student and teacher without weights; the teacher has as many ids as the student.

    Raises:
      FileNotFoundError: one is neither a folder nor one of the published sizes.
    """
    if cfg.student.fresh.hidden_size:
        config = fresh_config(cfg.student)[1]
    else:
        config = _architecture(cfg.student.path, "student.path", cfg.student.dtype)
        config = dataclasses.replace(config, remat=cfg.student.remat)
    student = build(config)
    if rank := cfg.student.lora_rank:
        student = lora.adapted(student, rank=rank, alpha=cfg.student.lora_alpha)
    if not cfg.teacher.path:
        return student, None
    computed = "bfloat16" if cfg.teacher.dtype == "int8" else cfg.teacher.dtype
    teacher = _architecture(cfg.teacher.path, "teacher.path", computed)
    return student, build(dataclasses.replace(teacher, vocab_size=config.vocab_size))


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
