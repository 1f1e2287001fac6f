"""Recorded episodes to read.

    python -m atod_jax.replay --episodes=runs/a --step=12
    python -m atod_jax.replay --episodes=runs/a --checkpoint=runs/a

With a checkpoint (or a --config) student and teacher score them again: each turn shows the mean
log-probability per token when it was sampled (`sampler`), now (`student`) and of the teacher, and
d, h and w as recorded and as they are now (`d_now`, ...). `--page=FILE` then writes the page of
`view` with all episodes of the step, token by token as they were recorded.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from atod_jax.algorithms.base import Step
from atod_jax.config import Run, defining
from atod_jax.device.scoring import teacher_rows
from atod_jax.episodes.recordings import EpisodeReader
from atod_jax.episodes.render import speller_of
from atod_jax.records import Speller, Trajectory
from atod_jax.results.files import require_place
from atod_jax.results.page import Batch, write_page
from atod_jax.results.runs import RunRecord
from atod_jax.results.transcripts import episode_text, records
from atod_jax.run import cli
from atod_jax.run.batch import Packed, pack
from atod_jax.run.checkpoints import add_checkpoint, own_config
from atod_jax.run.collectors import require_tokenizer
from atod_jax.run.layouts import Layouts, layouts_of
from atod_jax.run.models import Model, load_policy, load_teacher
from atod_jax.run.parts import algorithm
from atod_jax.run.scorers import BatchScorer
from atod_jax.run.traces import make_row_table
from atod_jax.types import TokenStats

Columns = dict[str, list[float]]


class Rescored(NamedTuple):
    """What the models say of recorded episodes now."""

    columns: list[Columns]  # per episode, a number per turn
    difference: float  # largest |student - sampler| log-probability of a token, nats
    speller: Speller  # of the student


def rescore(
    cfg: Run,
    layouts: Layouts,
    *,
    student: Model,
    step: int,
    episodes: Sequence[Trajectory],
) -> Rescored:
    """Scores episodes with the student and, where the config names one, the teacher."""
    mesh = layouts.student.mesh
    packed = pack(cfg, episodes, student=student, step=step)
    ours = BatchScorer(student, cfg, mesh)(student.params, packed)
    sampler = packed.batch.rows.sampler_logp
    table = _means(packed, sampler=sampler, student=ours.logp)
    teacher = load_teacher(cfg.teacher, student, layouts)
    if teacher:
        rows = teacher_rows(packed.batch)
        theirs = BatchScorer(teacher, cfg, mesh)(teacher.params, packed, rows)
        table |= _means(packed, teacher=theirs.logp)
        now = make_row_table(algorithm(cfg))(Step(packed.batch, ours, theirs, step))
        table |= {f"{name}_now": values for name, values in now.items()}
    columns = packed.by_turn(table, episodes)
    return Rescored(columns, _difference(packed, ours), speller_of(student.tokens))


def _means(packed: Packed, **streams: jax.Array) -> dict[str, np.ndarray]:
    """The mean of each stream [N, R] over the action tokens of a row."""
    tokens = np.maximum(packed.mask.sum(1), 1)
    return {name: (np.asarray(x) * packed.mask).sum(1) / tokens for name, x in streams.items()}


def _difference(packed: Packed, student: TokenStats) -> float:
    gap = np.abs(np.asarray(student.logp) - np.asarray(packed.batch.rows.sampler_logp))
    return float(np.where(packed.mask, gap, 0).max())


def replay(
    cfg: Run | None,
    episodes: str,
    *,
    checkpoint: str = "",
    step: int | None = None,
    limit: int = 4,
    page: str = "",
) -> Rescored | None:
    """Prints the recorded episodes of a step; with a config, scored again.

    Args:
      cfg: None: nothing is scored.
      episodes: a workdir of train, or a data set of episodes.
      checkpoint: as for `evaluate`: whose weights score as the student.
      step: None: the last one there.
      limit: how many episodes are printed, 0: all; all are scored.
      page: file to write a page of all episodes to; "": none.

    Raises:
      FileNotFoundError: there are no recordings.
      ValueError: no such step, damage, another tokenizer, or no place for a page.
    """
    recording = EpisodeReader(episodes)
    if not recording.steps:
        raise ValueError(f"{recording.folder} holds no step; record at least one")
    if checkpoint and cfg is None:
        raise ValueError(f"--checkpoint={checkpoint} needs a --config that describes the models")
    if page and cfg is None:
        raise ValueError(f"--page={page} needs --checkpoint or --config: whose tokens they are")
    if limit < 0:
        raise ValueError(f"--limit={limit}: give a number of episodes, or 0 for all")
    if page:
        require_place(Path(page), "--page")
    step = recording.steps[-1] if step is None else step
    trajectories, traces = recording.read(step)
    rescored = None if cfg is None else _rescore(recording, step, trajectories, cfg, checkpoint)
    shown = len(trajectories) if limit == 0 else min(limit, len(trajectories))
    for i in range(shown):
        print(episode_text(trajectories[i], _known(traces[i].turns) | _now(rescored, i)))
    won = sum(t.success for t in trajectories)
    print(
        f"step {step} of {recording.folder}: {shown} of {len(trajectories)} episodes shown, "
        f"{won} solved; steps {recording.steps[0]} to {recording.steps[-1]} are there"
    )
    if cfg and rescored and page:
        told = list(records(trajectories, traces, rescored.speller))
        run = RunRecord(recording.folder, defining(cfg), (), {})
        batches = [Batch(f"step{step}", "train", step, told)]
        print(f"page: {write_page(Path(page), [run], batches=batches, most=len(told)).path}")
    if rescored:
        print(
            "largest difference between the student's log-probability of a token and the recorded "
            f"one: {rescored.difference:.3g} nats"
        )
    return rescored


def _rescore(
    recording: EpisodeReader,
    step: int,
    trajectories: Sequence[Trajectory],
    cfg: Run,
    checkpoint: str,
) -> Rescored:
    layouts = layouts_of(cfg)
    with jax.set_mesh(layouts.student.mesh):
        student = load_policy(cfg, checkpoint, layouts)
        require_tokenizer(recording, student)
        return rescore(cfg, layouts, student=student, step=step, episodes=trajectories)


def _known(columns: Mapping[str, Sequence[float]]) -> dict[str, Sequence[float]]:
    """The columns that hold a number at all; without a teacher d, h and w are nan throughout."""
    return {name: v for name, v in columns.items() if any(map(math.isfinite, v))}


def _now(rescored: Rescored | None, i: int) -> dict[str, Any]:
    return rescored.columns[i] if rescored else {}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The program's own flags."""
    parser.add_argument(
        "--episodes", default="", help="a workdir of train, or a data set of episodes"
    )
    add_checkpoint(parser)
    parser.add_argument("--step", type=int, help="the training step to show; default: the last")
    parser.add_argument("--page", default="", help="file for a page of all episodes of the step")
    parser.add_argument("--limit", type=int, default=4, help="episodes to print; 0 = all")


def start(cfg: Run | None, flags: cli.Flags) -> None:
    """Shows what the flags name."""
    if not flags.episodes:
        raise ValueError("--episodes is missing: name the workdir of a run with record=true")
    replay(
        cfg,
        flags.episodes,
        checkpoint=flags.checkpoint,
        step=flags.step,
        limit=flags.limit,
        page=flags.page,
    )


PROGRAM = cli.Program(
    "replay", __doc__, start, add_flags=add_flags, fallback=own_config, may_lack_config=True
)

if __name__ == "__main__":
    cli.run(PROGRAM)
