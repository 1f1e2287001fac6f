"""What the bench runs: every entry is some programs, and how often each of them."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from atod_jax import config
from atod_jax.device.sampling import SamplingConfig
from atod_jax.episodes.packing import Form
from atod_jax.estimate import learning, playing, workload
from atod_jax.estimate.learning import Update
from atod_jax.estimate.programs import Program, size
from atod_jax.models import LanguageModel, build, config_from_hf
from atod_jax.models.sizes import published
from atod_jax.run.batch import form_of, turns_together
from atod_jax.sharding import Layout

TEACHER = "Qwen3-4B"
LENGTHS = Path(__file__).parents[1] / "assets" / "bench" / "lengths.json"
HEAD_WIDTH, HEAD_ROWS = 2048, 151_936
ITERATION = {"sampling.prompt_buckets": (512, 1024), "packing.micro_rows": 128}


class Setting(NamedTuple):
    """What the programs are made for."""

    model: str  # of the student, see `models.sizes`
    dtype: str  # of the products
    remat: str  # of the updates
    layout: Layout  # on one device
    vocab: int = 0  # rows of the heads; 0 = as published
    turns: int = 0  # of an episode of `iteration`, and episodes; 0 = as recorded
    episodes: int = 0

    @property
    def student(self) -> LanguageModel:
        return self.build(self.model)

    @property
    def learner(self) -> LanguageModel:
        """The student where it learns."""
        return self.build(self.model, remat=self.remat)

    @property
    def teacher(self) -> LanguageModel:
        return self.build(TEACHER)

    def build(self, name: str, *, remat: str = "none") -> LanguageModel:
        """A published model without weights."""
        config = config_from_hf(published(name), dtype=self.dtype)
        rows = self.vocab or config.vocab_size
        return build(dataclasses.replace(config, remat=remat, vocab_size=rows))

    def lengths(self, of: str) -> np.ndarray:
        """Recorded tokens of prompts or responses [turns, episodes], cut or repeated."""
        found = np.asarray(json.loads(LENGTHS.read_text())[of])
        turns, episodes = self.turns or len(found), self.episodes or found.shape[1]
        return np.resize(found.T, (episodes, found.shape[0])).T[np.arange(turns) % len(found)]


class Part(NamedTuple):
    """How often an entry runs a program, and steps of its open loop."""

    program: Program
    times: float = 1.0
    steps: float = 0.0
    beside: int = 0  # bytes on the device that the program is not given


def _rows(setting: Setting, *, rows: int, prompt: int, response: int) -> workload.Batch:
    """Rows that are all full, 32 of them at a time, one to a line."""
    places = turns_together(setting.student.config)
    form = Form(prompt + response, response, rows=places, micro_lines=32)
    return workload.packed([(prompt, response)] * rows, form, minibatch_rows=rows)


def _update(**shape: int) -> Callable[[Setting], list[Part]]:
    return lambda s: [Part(Update(s.learner, s.layout).whole(_rows(s, **shape)))]


def _score(s: Setting) -> list[Part]:
    batch = _rows(s, rows=64, prompt=512, response=128)
    judge = learning.score(s.teacher, batch, s.layout, teacher=s.dtype)
    return [Part(judge, times=batch.micro_batches)]


def _prefill(s: Setting) -> list[Part]:
    return [Part(playing.prefill(s.student, s.layout, lines=128, columns=512))]


def _decode(rows: int) -> Callable[[Setting], list[Part]]:
    """One step, and its share of what a chunk does besides."""
    cfg = _sampling(rows, tokens=128, buckets=(512,))

    def parts(s: Setting) -> list[Part]:
        program = playing.decode(
            s.student, s.layout, cfg, rows=rows, columns=512 + cfg.room, seen=512 + 64
        )
        return [Part(program, times=1 / cfg.chunk, steps=1)]

    return parts


def _head(teacher: bool) -> Callable[[Setting], list[Part]]:
    def parts(s: Setting) -> list[Part]:
        sizes = {"width": HEAD_WIDTH, "vocab": s.vocab or HEAD_ROWS}
        return [Part(learning.head(65_536, s.dtype, s.layout, teacher=teacher, **sizes))]

    return parts


def _sampling(slots: int, *, tokens: int, buckets: tuple[int, ...]) -> SamplingConfig:
    return SamplingConfig(
        max_new_tokens=tokens, prompt_buckets=buckets, slots=slots, eos_ids=(1,), pad_id=0
    )


def iteration(s: Setting) -> list[Part]:
    """Playing, both scorings and the updates of the built-in lengths, as a run would do them."""
    prompts, responses = s.lengths("prompt"), s.lengths("response")
    cfg = _sampling(128, tokens=512, buckets=ITERATION["sampling.prompt_buckets"])
    played = workload.play(s.student, cfg, prompts=prompts, responses=responses)
    model, layout = s.student, s.layout
    parts, writing = [], []
    for (rows, columns), times in played.chunks.items():
        program = playing.decode(model, layout, cfg, rows=rows, columns=columns, seen=played.seen)
        writing.append(Part(program, times, played.steps[rows, columns]))
    slots = max(size(part.program.shapes()[1]) for part in writing)
    for (lines, columns, many), times in played.reads.items():
        program = playing.prefill(model, layout, lines=lines, columns=columns, prompts=many)
        parts.append(Part(program, times, beside=slots))
    for (read, rows, columns, entries), times in played.fills.items():
        program = playing.fill(
            model, layout, cfg, read=read, rows=rows, columns=columns, entries=entries
        )
        parts.append(Part(program, times))
    turns = list(zip(prompts.flat, responses.flat, strict=True))
    run = config.changed(config.resolve(config.base(), model_required=False), ITERATION)
    lines = form_of(run, [workload.episode(turns)], model=s.student.config, mesh=s.layout.mesh)
    batch = workload.packed(turns, lines, minibatch_rows=run.packing.minibatch_rows)
    update = Update(s.learner, layout)
    judge, step = learning.score(s.teacher, batch, layout, teacher=s.dtype), update.step()
    for program in (learning.score(model, batch, layout), judge, update.gradient(batch)):
        parts.append(Part(program, batch.micro_batches))
    held = judge.given + step.given  # all the time: the teacher's weights, the state of training
    return [
        part._replace(beside=part.beside + held - part.program.given)
        for part in (*parts, *writing, Part(step, batch.minibatches))
    ]


TABLE: Mapping[str, Callable[[Setting], list[Part]]] = {
    "update_64x640": _update(rows=64, prompt=512, response=128),
    "update_32x1536": _update(rows=32, prompt=1024, response=512),
    "score_4b_64x640": _score,
    "prefill_128x512": _prefill,
    "decode_128": _decode(128),
    "decode_32": _decode(32),
    "head_65536": _head(teacher=False),
    "head_65536_teacher": _head(teacher=True),
    "iteration": iteration,
}
