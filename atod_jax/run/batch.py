"""Trajectories as a batch on devices, and what the host knows of it without asking them."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from atod_jax.config.sections import Run
from atod_jax.device.lines import Room
from atod_jax.device.scoring import split
from atod_jax.episodes.packing import Form, pack_turns
from atod_jax.models import ModelConfig
from atod_jax.models.block import kernel_of_config
from atod_jax.records import Trajectory
from atod_jax.run.layouts import line_shards, shapes_of, shards_of
from atod_jax.run.models import Model
from atod_jax.sharding import place, replicate
from atod_jax.streams import Stream, rng
from atod_jax.types import TurnBatch

T = TypeVar("T")

# Places in a line. Where scores are written out they are those of the whole line, so it is short.
TURNS = {"cudnn": 8, "splash": 8, "written": 4}
COLUMNS = 128  # lines of a kernel are a multiple of this long
WIDER = 64  # response columns are a multiple of it where a target is longer than a response may be


class Packed(NamedTuple):
    """One step of experience."""

    batch: TurnBatch  # on devices
    mesh: Mesh  # these
    form: Form
    minibatch: tuple[int, ...]  # see `packing.Batch`
    mask: np.ndarray  # bool[N, R], its action mask
    traj: np.ndarray  # i32[N], B on padding rows
    turn: np.ndarray  # i32[N]
    tokens: int  # of prompts and actions

    @property
    def useful(self) -> float:
        """The share of the columns that models compute which hold a token of a turn."""
        return self.tokens / (self.full * self.form.micro_lines * self.form.columns)

    @property
    def full(self) -> int:
        """How many micro-batches hold a turn; the others come last."""
        return sum(number >= 0 for number in self.minibatch)

    def pieces(self, tree: Any) -> list[Any]:
        """Cuts arrays [N, ...] into the micro-batches that hold a turn."""
        return split(tree, pieces=len(self.minibatch), first=self.full)

    def room(self, mesh: Mesh) -> Room:
        """Places for the action tokens of a micro-batch on one device of a mesh; one for the whole
        batch, so that one program runs."""
        form = self.form
        return Room.of(
            self.mask.sum(axis=1).reshape(-1, form.rows).sum(axis=1),
            most=min(form.columns, form.rows * form.response_columns),
            micro_lines=form.micro_lines,
            shards=shards_of(mesh.shape),
        )

    def by_turn(
        self, table: dict[str, np.ndarray], trajectories: Sequence[Trajectory]
    ) -> list[dict[str, list[float]]]:
        """Numbers per row [N] -> per trajectory, one per turn; nan for the turns without a row."""
        return self._by_turn(table, trajectories, math.nan, lambda values, row: float(values[row]))

    def by_token(
        self, streams: dict[str, np.ndarray], trajectories: Sequence[Trajectory]
    ) -> list[dict[str, list[np.ndarray]]]:
        """Streams [N, R] -> per trajectory, f32[a] per turn; nothing for the turns without a
        row."""
        nothing = np.zeros(0, np.float32)
        return self._by_turn(
            streams,
            trajectories,
            nothing,
            lambda x, row: np.asarray(x[row][self.mask[row]], np.float32),
        )

    def _by_turn(
        self,
        table: dict[str, np.ndarray],
        trajectories: Sequence[Trajectory],
        missing: T,
        of_row: Callable[[np.ndarray, int], T],
    ) -> list[dict[str, list[T]]]:
        result = [{name: [missing] * len(t.turns) for name in table} for t in trajectories]
        for row, (b, k) in enumerate(zip(self.traj, self.turn, strict=True)):
            if b < len(trajectories):
                for name, values in table.items():
                    result[b][name][k] = of_row(values, row)
        return result


def pack(cfg: Run, trajectories: Sequence[Trajectory], *, student: Model, step: int) -> Packed:
    """Trajectories as lines, where the student trains."""
    mesh = student.layout.mesh
    form = form_of(cfg, trajectories, model=student.lm.config, mesh=mesh)
    turns, minibatch = pack_turns(
        trajectories,
        form=form,
        minibatch_rows=cfg.packing.minibatch_rows,
        pad_id=student.tokens.pad,
        rng=rng(cfg.seed, Stream.packing, step),
        anchor_similarity=cfg.packing.anchor_similarity,
    )
    rows, teacher_lines = place((turns.rows, turns.teacher_lines), mesh)
    batch = TurnBatch(
        rows=rows,
        returns=replicate(turns.returns, mesh),
        group=replicate(turns.group, mesh),
        teacher_lines=teacher_lines,
    )
    mask, traj, turn = (
        np.asarray(x) for x in (turns.rows.action_mask, turns.rows.traj, turns.rows.turn)
    )
    assert turns.rows.lines is not None
    tokens = int(mask.sum() + np.asarray(turns.rows.lines.prompt_length).sum())
    return Packed(batch, mesh, form, minibatch, mask, traj, turn, tokens)


def form_of(
    cfg: Run, trajectories: Sequence[Trajectory], *, model: ModelConfig, mesh: Mesh
) -> Form:
    """The lines of a batch, wide enough for what is taught even where the student may write less.

    A line is as long as the longest turn there can be and holds several, so that all batches have
    one form. Before Hopper it holds one, and is as long as the smallest prompt bucket allows.
    """
    turns = [turn for t in trajectories for turn in t.turns]
    prompts = [len(turn.prompt) for turn in turns]
    teacher = [len(t.teacher_prompt) for t in turns if t.teacher_prompt is not None]
    together = turns_together(model)
    buckets, tokens = cfg.sampling.prompt_buckets, cfg.sampling.max_new_tokens
    if (longest := max((len(turn.action) for turn in turns), default=0)) > tokens:
        tokens = -(-longest // WIDER) * WIDER

    def columns(lengths: Sequence[int]) -> int:
        longest = buckets[-1]
        if together == 1:
            longest = next((b for b in buckets if b >= max(lengths)), longest)
        unit = 1 if kernel_of_config(model) == "written" else COLUMNS
        return -(-(longest + tokens - 1) // unit) * unit

    # the student and a teacher on devices of its own take equal parts of them
    shards = line_shards(shapes_of(cfg, mesh.size + cfg.teacher.devices))
    return Form(
        columns=columns(prompts),
        response_columns=tokens,
        rows=together,
        micro_lines=-(-cfg.packing.micro_rows // (together * shards)) * shards,
        teacher_columns=columns(teacher) if teacher else 0,
    )


def turns_together(model: ModelConfig) -> int:
    """Places for turns in a line; cuDNN keeps them apart on Hopper and later."""
    kernel = kernel_of_config(model)
    return TURNS[kernel] if kernel != "cudnn" or _hopper() else 1


def _hopper() -> bool:
    """Whether the GPUs are new enough for cuDNN's packed layout."""
    return float(getattr(jax.devices()[0], "compute_capability", 9)) >= 9
