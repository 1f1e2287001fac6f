"""Trajectories as a batch on devices, and what the host knows of it without asking them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from atod_jax.config.sections import Packing, Run
from atod_jax.core.fused import capacity_of
from atod_jax.episodes.packing import pack_turns
from atod_jax.records import Trajectory
from atod_jax.sharding import place, replicate
from atod_jax.streams import Stream, rng
from atod_jax.types import BATCH_AXES, TurnBatch


class Packed(NamedTuple):
    """One step of experience."""

    batch: TurnBatch  # on devices
    mask: np.ndarray  # bool[N, R], its action mask
    traj: np.ndarray  # i32[N], B on padding rows
    turn: np.ndarray  # i32[N]

    def capacity(self, cfg: Packing, mesh: Mesh) -> int:
        """Places for the action tokens of a micro-batch on one device of a mesh; one number for the
        whole batch, so that one program runs."""
        size, shards = cfg.minibatch_rows, math.prod(mesh.shape[axis] for axis in BATCH_AXES)
        return max(
            capacity_of(self.mask[m : m + size], micro_rows=cfg.micro_rows, shards=shards)
            for m in range(0, len(self.mask), size)
        )

    def by_turn(
        self, table: dict[str, np.ndarray], trajectories: Sequence[Trajectory]
    ) -> list[dict[str, list[float]]]:
        """Numbers per row [N] -> per trajectory, one per turn; nan for the turns without a row."""
        result = [{name: [math.nan] * len(t.turns) for name in table} for t in trajectories]
        for row, (b, k) in enumerate(zip(self.traj, self.turn, strict=True)):
            if b < len(trajectories):
                for name, values in table.items():
                    result[b][name][k] = float(values[row])
        return result


def pack(
    cfg: Run, trajectories: Sequence[Trajectory], *, mesh: Mesh, pad_id: int, step: int
) -> Packed:
    """Trajectories as rows; prompt columns are the smallest bucket that fits."""
    turns = [turn for t in trajectories for turn in t.turns]
    teacher_prompts = [t.teacher_prompt for t in turns if t.teacher_prompt is not None]
    buckets = cfg.sampling.prompt_buckets
    host = pack_turns(
        trajectories,
        minibatch_rows=cfg.packing.minibatch_rows,
        prompt_columns=_bucket(buckets, [turn.prompt for turn in turns]),
        response_columns=cfg.sampling.max_new_tokens,
        pad_id=pad_id,
        rng=rng(cfg.seed, Stream.packing, step),
        teacher_prompt_columns=_bucket(buckets, teacher_prompts) if teacher_prompts else 0,
        anchor_similarity=cfg.packing.anchor_similarity,
    )
    per_row = (host.rows, host.teacher_prompt, host.teacher_prompt_length)
    rows, teacher_prompt, teacher_prompt_length = place(per_row, mesh)
    batch = TurnBatch(
        rows=rows,
        returns=replicate(host.returns, mesh),
        group=replicate(host.group, mesh),
        teacher_prompt=teacher_prompt,
        teacher_prompt_length=teacher_prompt_length,
    )
    mask, traj, turn = (
        np.asarray(x) for x in (host.rows.action_mask, host.rows.traj, host.rows.turn)
    )
    return Packed(batch, mask, traj, turn)


def _bucket(buckets: Sequence[int], prompts: Sequence[np.ndarray]) -> int:
    """The smallest prompt bucket that holds them all; the largest where none does."""
    longest = max(len(p) for p in prompts)
    return next((b for b in buckets if b >= longest), buckets[-1])
