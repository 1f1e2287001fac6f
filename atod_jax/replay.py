"""`python -m atod_jax.replay --episodes=DIR [--step=N]`: recorded episodes to read.

With `--config=... [--checkpoint=...]` student and teacher score them again: each turn shows the
mean log-probability per token when it was sampled (`sampler`), now (`student`) and of the teacher,
and d, h and w as recorded and as they are now (`d_now`, ...).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from atod_jax.device.scoring import teacher_rows
from atod_jax.episodes.store import Recording
from atod_jax.evaluate import CHECKPOINT, load_policy
from atod_jax.records import Trajectory
from atod_jax.results.metrics import episode_text
from atod_jax.run import assembly, cli
from atod_jax.run.assembly import Model
from atod_jax.run.collectors import require_tokenizer
from atod_jax.run.layouts import Layouts, layouts_of
from atod_jax.run.observer import BatchScorer, make_turn_table, pack, turn_columns
from atod_jax.sharding import to_host
from atod_jax.types import TokenStats, TurnBatch

Columns = dict[str, list[float]]

EPISODES = flags.DEFINE_string("episodes", "", "a workdir of train, or a data set of episodes")
STEP = flags.DEFINE_integer("step", None, "the training step to show; default: the last")
LIMIT = flags.DEFINE_integer("limit", 4, "episodes to print; 0 = all")


class Rescored(NamedTuple):
    """What the models say of recorded episodes now."""

    columns: list[Columns]  # per episode, a number per turn
    difference: float  # largest |student - sampler| log-probability of a token, nats


def rescore(
    cfg: ConfigDict, layouts: Layouts, student: Model, step: int, episodes: Sequence[Trajectory]
) -> Rescored:
    """Scores episodes with the student and, where the config names one, the teacher."""
    mesh = layouts.student.mesh
    batch = pack(cfg, mesh, episodes, student.tokenizer.pad_token_id, step)
    mask = to_host(batch.rows.action_mask)
    ours = BatchScorer(student, cfg, mesh)(student.params, batch.rows, mask)
    table = _means(batch, sampler=batch.rows.sampler_logp, student=ours.logp)
    teacher = assembly.load_teacher(cfg, student, layouts)
    if teacher:
        theirs = BatchScorer(teacher, cfg, mesh)(teacher.params, teacher_rows(batch), mask)
        table |= _means(batch, teacher=theirs.logp)
        now = make_turn_table(cfg)(batch, ours, theirs)
        table |= {f"{name}_now": values for name, values in now.items()}
    return Rescored(turn_columns(table, batch, episodes), _difference(batch, ours))


def _means(batch: TurnBatch, **streams: jax.Array) -> dict[str, np.ndarray]:
    """The mean of each stream [N, R] over the action tokens of a row."""
    mask = np.asarray(batch.rows.action_mask)
    tokens = np.maximum(mask.sum(1), 1)
    return {name: (np.asarray(x) * mask).sum(1) / tokens for name, x in streams.items()}


def _difference(batch: TurnBatch, student: TokenStats) -> float:
    gap = np.abs(np.asarray(student.logp) - np.asarray(batch.rows.sampler_logp))
    return float(np.where(np.asarray(batch.rows.action_mask), gap, 0).max())


def main(cfg: ConfigDict | None, workdir: str) -> None:
    """The command."""
    if not EPISODES.value:
        raise ValueError("--episodes is missing: name the workdir of a run with record=true")
    replay(EPISODES.value, STEP.value, LIMIT.value, cfg, CHECKPOINT.value)


def replay(
    episodes: str, step: int | None, limit: int, cfg: ConfigDict | None, checkpoint: str
) -> Rescored | None:
    """Prints the recorded episodes of a step; with a config, scored again.

    Args:
      step: None: the last one there.
      limit: how many episodes are printed, 0: all; all are scored.
      checkpoint: as for `evaluate`: whose weights score as the student.

    Raises:
      FileNotFoundError: there are no recordings.
      ValueError: no such step, damage, or another tokenizer.
    """
    recording = Recording(episodes)
    if not recording.steps:
        raise ValueError(f"{recording.folder} holds no step; record at least one")
    if checkpoint and cfg is None:
        raise ValueError(f"--checkpoint={checkpoint} needs a --config that describes the models")
    step = recording.steps[-1] if step is None else step
    trajectories, columns = recording.read(step)
    rescored = None if cfg is None else _rescore(recording, step, trajectories, cfg, checkpoint)
    shown = len(trajectories) if limit == 0 else min(limit, len(trajectories))
    for i in range(shown):
        print(episode_text(trajectories[i], _known(columns[i]) | _now(rescored, i)))
    won = sum(t.success for t in trajectories)
    print(
        f"step {step} of {recording.folder}: {shown} of {len(trajectories)} episodes shown, "
        f"{won} solved; steps {recording.steps[0]} to {recording.steps[-1]} are there"
    )
    if rescored:
        print(
            "largest difference between the student's log-probability of a token and the recorded "
            f"one: {rescored.difference:.3g} nats"
        )
    return rescored


def _rescore(
    recording: Recording,
    step: int,
    trajectories: Sequence[Trajectory],
    cfg: ConfigDict,
    checkpoint: str,
) -> Rescored:
    layouts = layouts_of(cfg)
    with jax.set_mesh(layouts.student.mesh):
        student = load_policy(cfg, checkpoint, layouts)
        require_tokenizer(recording, student)
        return rescore(cfg, layouts, student, step, trajectories)


def _known(columns: Mapping[str, list[float]]) -> Columns:
    """The columns that hold a number at all; without a teacher d, h and w are nan throughout."""
    return {name: v for name, v in columns.items() if any(map(math.isfinite, v))}


def _now(rescored: Rescored | None, i: int) -> dict[str, Any]:
    return rescored.columns[i] if rescored else {}


if __name__ == "__main__":
    cli.run(main, workdir_required=False, config_required=False)
