"""The programs of an iteration on their devices, and what lies on these all the time."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from atod_jax.config import Run
from atod_jax.device.sampling import SamplingConfig
from atod_jax.estimate import learning, playing, programs, workload
from atod_jax.estimate.cost import Cost, Figures, Memory, estimated, of_executable
from atod_jax.estimate.hardware import Hardware
from atod_jax.estimate.learning import Update
from atod_jax.estimate.programs import Program, TooLarge
from atod_jax.estimate.workload import Batch
from atod_jax.models import LanguageModel, ModelConfig, build, config_from_hf, lora
from atod_jax.models.checkpoint_io import read_config
from atod_jax.models.sizes import SIZES
from atod_jax.run.batch import form_of
from atod_jax.run.layouts import Layouts, layouts_of, shards_of
from atod_jax.run.models import fresh_config, local_path
from atod_jax.run.parts import algorithm
from atod_jax.sharding import Layout

READING, WRITING = "reading prompts", "writing actions"
STUDENT_SCORING, TEACHER_SCORING = "student scoring", "teacher scoring"
GRADIENT, STEP = "gradient", "optimiser step"
PLAYING = (READING, WRITING)


class Phase(NamedTuple):
    """One program of an iteration."""

    name: str
    program: Program
    whose: str  # devices: student | teacher; "" where both are on all
    beside: int  # bytes on each of them, for the whole run, that the program is not given
    times: float = 1.0  # per iteration
    steps: float = 0.0


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

    def moved(self, phase: Phase) -> "Compiled":
        """The same temporaries, with what another phase is given and lies beside."""
        memory = self.cost.memory._replace(arguments=programs.size(phase.program.shapes()))
        return Compiled(phase, self.cost._replace(memory=memory))


def compiled(phase: Phase, hardware: Hardware) -> Compiled:
    """The phase with its program compiled for its devices; time stays 0 where nothing is known."""
    try:
        executable = phase.program.compile()
    except TooLarge as error:
        memory = Memory(programs.size(phase.program.shapes()), error.temporary, 0)
        return Compiled(phase, Cost(Figures(), Figures(), memory, []))
    if hardware.chip.flops:
        return Compiled(phase, estimated(executable, hardware.chip))
    return Compiled(phase, of_executable(executable, lambda kernel: 0.0))


def plan(cfg: Run, devices: np.ndarray) -> Sequence[Phase]:
    """The programs of the longest iteration there can be: every episode goes on to its last turn,
    prompts and actions are as long as they may be, no prompt is shared.

    Raises:
      ValueError: a mesh does not fit the devices, or the batch a mesh.
      FileNotFoundError: a model is neither a folder nor one of the published sizes.
    """
    layouts, (ours, theirs), named = layouts_of(cfg, devices), models(cfg), algorithm(cfg)
    batch, their_batch = (
        _longest(cfg, ours, layouts, shards=_shards(layout))
        for layout in (layouts.student, layouts.teacher)
    )
    their = ours if named.teacher.self_teacher else theirs
    exact = named.teacher.exact_kl
    update = Update(ours, layouts.student, cfg.loss, cfg.optim, teacher=their if exact else None)
    step = update.step()
    score = learning.score(ours, batch, layouts.student)
    judge = theirs and learning.score(
        theirs, their_batch, layouts.teacher, teacher=cfg.teacher.dtype, keep_states=exact
    )
    # the weights at the start stay, for their evaluation and the KL to them
    start = programs.size(ours.split(score.shapes()[0])[0])
    frozen = score.given - start
    lying = {
        "student": step.given + frozen + start,
        "teacher": judge.given if judge else 0,
    }
    phases = []

    def add(name: str, program: Program, whose: str, *, more: int = 0, **often: float) -> None:
        apart = cfg.teacher.devices > 0
        there = more + (lying[whose] if apart else sum(lying.values()))
        phases.append(Phase(name, program, whose * apart, there - program.given, **often))

    turns = cfg.rollout.tasks * cfg.rollout.group * cfg.env.max_turns
    micro_batches = turns / len(batch.lengths)
    if cfg.rollout.source == "student":
        for name, program, often in _playing(cfg, ours, layouts.sampling):
            add(name, program, "student", **often)
    if named.scores_student:
        add(STUDENT_SCORING, score, "student", times=micro_batches)
    # an exact KL keeps the teacher's states of all micro-batches, where it is and for the update
    kept = math.ceil(micro_batches) * _states(batch, their.config) if exact and their else 0
    theirs_kept, ours_kept = (kept // _shards(at) for at in (layouts.teacher, layouts.student))
    if named.needs_teacher(0) and named.teacher.self_teacher:
        add(TEACHER_SCORING, score, "student", times=micro_batches)
    elif named.needs_teacher(0) and judge:
        add(TEACHER_SCORING, judge, "teacher", times=micro_batches, more=theirs_kept)
    # of these, one copy is whole and one is cut into micro-batches
    add(GRADIENT, update.gradient(batch), "student", times=micro_batches, more=2 * ours_kept)
    add(
        STEP,
        step,
        "student",
        more=2 * ours_kept,
        times=math.ceil(turns / cfg.packing.minibatch_rows),
    )
    return phases


def _longest(cfg: Run, model: LanguageModel, layouts: Layouts, *, shards: int) -> Batch:
    """A micro-batch of the longest turns there can be, with room for it on so many devices."""
    turn = cfg.sampling.prompt_buckets[-1], cfg.sampling.max_new_tokens
    form = form_of(cfg, [workload.episode([turn])], model=model.config, mesh=layouts.student.mesh)
    turns = [turn] * form.micro_lines
    return workload.packed(turns, form, minibatch_rows=len(turns), shards=shards)


def _states(batch: Batch, teacher: ModelConfig) -> int:
    """Bytes of a teacher's final states for the action tokens of a micro-batch."""
    item = jnp.dtype(teacher.dtype).itemsize
    return batch.form.micro_lines * batch.room.line * teacher.hidden_size * item


def _playing(
    cfg: Run, model: LanguageModel, layout: Layout
) -> Iterator[tuple[str, Program, dict[str, Any]]]:
    """The programs of sampling, and how often they run."""
    episodes = cfg.rollout.tasks * cfg.rollout.group
    sampling = SamplingConfig(
        max_new_tokens=cfg.sampling.max_new_tokens,
        prompt_buckets=cfg.sampling.prompt_buckets,
        slots=min(max(episodes, cfg.eval.slots), cfg.sampling.rows),
        eos_ids=(1,),
        pad_id=0,
        top_k=cfg.sampling.top_k,
        top_p=cfg.sampling.top_p,
    )
    whole = np.ones((cfg.env.max_turns, episodes), int)
    played = workload.play(
        model,
        sampling,
        prompts=cfg.sampling.prompt_buckets[-1] * whole,
        responses=cfg.sampling.max_new_tokens * whole,
        shards=_shards(layout),
    )
    (lines, columns, prompts), _ = max(played.reads.items())
    reading = playing.prefill(model, layout, lines=lines, columns=columns, prompts=prompts)
    (rows, columns), _ = max(played.chunks.items())
    writing = playing.decode(model, layout, sampling, rows=rows, columns=columns, seen=played.seen)
    slots = programs.size(writing.shapes()[1])
    yield READING, reading, {"times": sum(played.reads.values()), "more": slots}
    steps = {"times": sum(played.chunks.values()), "steps": sum(played.steps.values())}
    yield WRITING, writing, steps


def _shards(layout: Layout) -> int:
    return shards_of(layout.mesh.shape)


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
