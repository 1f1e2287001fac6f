"""What a training run shows of itself: evaluations, transcripts with the turn table, the curve."""

import functools
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from atod_jax import cluster, config
from atod_jax.algorithms import atod
from atod_jax.core.fused import capacity_of
from atod_jax.device.scoring import join, make_score, split
from atod_jax.episodes.packing import pack_turns
from atod_jax.episodes.store import Recorder
from atod_jax.records import Trajectory
from atod_jax.results.intervals import EvalResult
from atod_jax.results.metrics import Writer
from atod_jax.run import assembly
from atod_jax.run.assembly import Environment, Model
from atod_jax.run.evaluation import Evaluator
from atod_jax.sharding import BATCH_AXES, batch_sharding, place, put, replicate, to_host
from atod_jax.streams import Stream, rng
from atod_jax.types import Rows, TokenStats, TurnBatch


class BatchScorer:
    """Scores all rows of a batch, one minibatch at a time, so that one shape compiles.

    Rows come from `mesh` and the statistics go there; the model may live on another one. `mask` is
    the host's copy of their action mask: it is fetched once for all who score a batch.
    """

    def __init__(self, model: Model, cfg: ConfigDict, mesh: Mesh, *, keep_states: bool = False):
        self._cfg, self._from, self._at = cfg, mesh, model.layout.mesh
        score_cfg = assembly.score_config(cfg, model.tokenizer, self._at)
        self._score = make_score(model.lm, score_cfg, keep_states=keep_states)

    def __call__(self, params: Any, rows: Rows, mask: np.ndarray) -> TokenStats:
        room = head_room(self._cfg, self._at, mask)
        if self._at == self._from:
            return self._all(params, rows, room)
        with jax.set_mesh(self._at):
            stats = self._all(params, put(rows, batch_sharding(self._at)), room)
        return put(stats, batch_sharding(self._from))

    def _all(self, params: Any, rows: Rows, room: int) -> TokenStats:
        pieces = split(rows, size=self._cfg.packing.minibatch_rows)
        return join([self._score(params, piece, room) for piece in pieces])


def head_room(cfg: ConfigDict, mesh: Mesh, mask: np.ndarray) -> int:
    """Room for the action tokens of a micro-batch on one device, one number for the whole batch."""
    size = cfg.packing.minibatch_rows
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    return max(
        capacity_of(mask[m : m + size], micro_rows=cfg.packing.micro_rows, shards=shards)
        for m in range(0, len(mask), size)
    )


def pack(
    cfg: ConfigDict, mesh: Mesh, trajectories: Sequence[Trajectory], pad_id: int, step: int
) -> TurnBatch:
    """Trajectories as device rows; prompt columns are the smallest bucket that fits."""
    turns = [turn for t in trajectories for turn in t.turns]
    teacher_prompts = [t.teacher_prompt for t in turns if t.teacher_prompt is not None]
    batch = pack_turns(
        trajectories,
        minibatch_rows=cfg.packing.minibatch_rows,
        prompt_columns=_bucket(cfg, [turn.prompt for turn in turns]),
        response_columns=cfg.sampling.max_new_tokens,
        pad_id=pad_id,
        rng=rng(cfg.seed, Stream.packing, step),
        teacher_prompt_columns=_bucket(cfg, teacher_prompts) if teacher_prompts else 0,
        anchor_similarity=cfg.packing.anchor_similarity,
    )
    per_row = (batch.rows, batch.teacher_prompt, batch.teacher_prompt_length)
    rows, teacher_prompt, teacher_prompt_length = place(per_row, mesh)
    return TurnBatch(
        rows=rows,
        returns=replicate(batch.returns, mesh),
        group=replicate(batch.group, mesh),
        teacher_prompt=teacher_prompt,
        teacher_prompt_length=teacher_prompt_length,
    )


def _bucket(cfg: ConfigDict, prompts: Sequence[np.ndarray]) -> int:
    """The smallest prompt bucket that holds them all; the largest where none does."""
    longest, buckets = max(len(p) for p in prompts), cfg.sampling.prompt_buckets
    return next((b for b in buckets if b >= longest), buckets[-1])


def turn_columns(
    table: dict[str, np.ndarray], batch: TurnBatch, trajectories: Sequence[Trajectory]
) -> list[dict[str, list[float]]]:
    """Numbers per row [N] -> per trajectory, one per turn; nan for the turns without a row."""
    index = to_host(batch.rows.traj), to_host(batch.rows.turn)
    result = [{name: [float("nan")] * len(t.turns) for name in table} for t in trajectories]
    for row, (b, k) in enumerate(zip(*index)):
        if b < len(trajectories):
            for name, values in table.items():
                result[b][name][k] = float(values[row])
    return result


class TurnTable:
    """Per-turn disagreement d, uncertainty h and T-DUR weight w of finished episodes (nats)."""

    def __init__(self, cfg: ConfigDict, mesh: Mesh, student: Model, teacher: Model):
        self._cfg, self._mesh, self._teacher = cfg, mesh, teacher
        self._pad = student.tokenizer.pad_token_id
        self._scorers = BatchScorer(student, cfg, mesh), BatchScorer(teacher, cfg, mesh)
        self._table = make_turn_table(cfg)

    def __call__(
        self, params: Any, trajectories: Sequence[Trajectory]
    ) -> list[dict[str, list[float]]]:
        """Per trajectory {"d": [...], "h": [...], "w": [...]}, one per turn, nan if replayed."""
        batch = pack(self._cfg, self._mesh, trajectories, self._pad, 0)
        score_student, score_teacher = self._scorers
        mask = to_host(batch.rows.action_mask)
        student = score_student(params, batch.rows, mask)
        teacher = score_teacher(self._teacher.params, batch.rows, mask)
        return turn_columns(self._table(batch, student, teacher), batch, trajectories)


def make_turn_table(
    cfg: ConfigDict,
) -> Callable[[TurnBatch, TokenStats, TokenStats], dict[str, np.ndarray]]:
    """(batch, student, teacher) -> d, h and w of every row [N], as algorithm.atod has them."""
    compute = jax.jit(
        functools.partial(atod.turn_table, config.section(atod.Config, cfg.algorithm.atod))
    )

    def table(batch: TurnBatch, student: TokenStats, teacher: TokenStats) -> dict[str, np.ndarray]:
        rows = {k: to_host(x) for k, x in compute(batch, student, teacher).items()}
        return {"d": rows["divergence"], "h": rows["uncertainty"], "w": rows["weight"]}

    return table


class Observer:
    """Evaluates while training and keeps what it found in the workdir."""

    def __init__(
        self,
        cfg: ConfigDict,
        mesh: Mesh,
        env: Environment,
        student: Model,
        teacher: Model | None,
        writer: Writer,
        out: Path,
        between_turns: Callable[[], None],
    ):
        self._cfg, self._mesh, self._env, self._writer = cfg, mesh, env, writer
        self._folder, self._stop = out / "evaluations", between_turns
        self._evaluators: dict[tuple[Any, float], Evaluator] = {}  # compiled once each
        self._curve = self._evaluator(student, cfg.eval.curve_temperature)
        self._tasks = env.tasks(cfg.eval.split, cfg.eval.tasks)
        self._turn_table = TurnTable(cfg, mesh, student, teacher) if teacher else None
        self._row_table = make_turn_table(cfg)
        self._recorder = Recorder(out / "episodes", assembly.tokenizer_digest(student.tokenizer))
        self.references: dict[str, dict[float, EvalResult]] = {}

    def _evaluator(self, model: Model, temperature: float) -> Evaluator:
        slot = (model.lm, temperature)
        if slot not in self._evaluators:
            self._evaluators[slot] = Evaluator(
                self._cfg, model, self._env, temperature=temperature, stop=self._stop
            )
        return self._evaluators[slot]

    def reference(self, name: str, model: Model, params: Any) -> None:
        """The full evaluation of one policy at every final temperature; stored, so run once."""
        tasks = self._env.tasks(self._cfg.eval.split, self._cfg.eval.final_tasks)
        self.references[name] = {}
        for temperature in self._cfg.eval.temperatures:
            path = self._folder / f"{name}-T{temperature:g}.json"
            if not cluster.first_says(path.is_file()):
                what = f"{name}: playing {len(tasks)} tasks at temperature {temperature:g}"
                if cluster.is_first():
                    print(what, file=sys.stderr, flush=True)
                evaluator, passes = self._evaluator(model, temperature), self._cfg.eval.passes
                result, _ = evaluator.run(params, tasks, passes=passes)
                if cluster.is_first():
                    store(path, result)
            stored = cluster.first_says(json.loads(path.read_text()) if cluster.is_first() else {})
            self.references[name][temperature] = EvalResult.from_json(stored)

    def curve(self, step: int, params: Any) -> None:
        """One point of the success curve, with a few episodes to read."""
        result, trajectories = self._curve.run(params, self._tasks)
        rate = result.rate()
        scalars = {
            "eval/success": rate.value,
            "eval/success_low": rate.low,
            "eval/success_high": rate.high,
            "eval/score": result.mean_score().value,
            "eval/failed": float(len(result.failed)),
            "eval/turns": float(np.mean(result.turns)),
            "eval/valid_actions": result.valid_rate,
        }
        scalars |= {f"eval/success/{k}": r.value for k, r in result.rate_by_kind().items()}
        self._writer.scalars(step, scalars)
        shown = trajectories[: self._cfg.log_transcripts]
        columns = self._turn_table(params, shown) if self._turn_table and shown else None
        self._writer.transcripts(step, "eval", shown, columns=columns)

    def record(
        self,
        step: int,
        trajectories: Sequence[Trajectory],
        batch: TurnBatch,
        student: TokenStats,
        teacher: TokenStats | None,
    ) -> None:
        """Keeps the training episodes of a step, with d, h and w where there is a teacher."""
        columns = None
        if teacher is not None:
            columns = turn_columns(self._row_table(batch, student, teacher), batch, trajectories)
        if cluster.is_first():
            self._recorder.write(step, trajectories, columns)


def store(path: Path, result: EvalResult) -> None:
    """Writes a result as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result.to_json()))
    partial.replace(path)
