"""`python -m atod_jax.train --config=configs/<file>.py[:variant] --workdir=DIR`: the training loop.

One iteration: rollout -> pack -> score (student, teacher) -> signal -> update. Everything that
defines the future of a run is the train state and the config, so an iteration can be abandoned at
any point and played again; stopping and resuming rely on that.
"""

import contextlib
import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from atod_jax import cluster, config
from atod_jax.core.fused import VOCAB
from atod_jax.core.losses import LossConfig
from atod_jax.device import learner
from atod_jax.device.optim import OptimConfig, make_learning_rate, make_optimizer
from atod_jax.device.scoring import teacher_rows
from atod_jax.episodes.tasks import TaskSource
from atod_jax.estimate import dry_run
from atod_jax.models.checkpoint_io import save_hf
from atod_jax.results.checkpoint import Checkpointer
from atod_jax.results.metrics import Muted, Progress, Writer
from atod_jax.results.report import config_digest, package_versions, read_curve, write_report
from atod_jax.run import assembly, cli
from atod_jax.run.assembly import Algorithm, Model
from atod_jax.run.collectors import make_collect
from atod_jax.run.layouts import layouts_of
from atod_jax.run.measures import Clock, env_scalars, finite_scalars, rollout_scalars
from atod_jax.run.observer import BatchScorer, Observer, head_room, pack
from atod_jax.sharding import on_mesh, put, to_host
from atod_jax.types import TokenStats, TurnBatch

_DRY_RUN = flags.DEFINE_bool("dry_run", False, "print what the run would need, and stop")
_HARDWARE = flags.DEFINE_string("hardware", "cpu", "with --dry_run: v5e-16, v5p-64, h100-8, cpu …")


def main(cfg: ConfigDict, workdir: str) -> None:
    """Runs a whole training run, or what is left of it."""
    out = open_workdir(Path(workdir), cfg)
    layouts = layouts_of(cfg)
    mesh = layouts.student.mesh
    with jax.set_mesh(mesh), cli.StopRequest() as stop, contextlib.ExitStack() as stack:
        # --- models ---------------------------------------------------------------------------
        student = assembly.load_student(cfg, layouts)
        teacher = assembly.load_teacher(cfg, student, layouts)
        algorithm = assembly.algorithm(cfg)
        require_teacher(cfg, teacher, algorithm)
        optim_cfg = config.section(OptimConfig, cfg.optim)
        tx, rate = make_optimizer(optim_cfg), make_learning_rate(optim_cfg, cfg.total_steps)
        checkpoints = Checkpointer(
            out / "checkpoints", keep=cfg.keep_checkpoints, config=cfg.to_dict()
        )
        # The loaded weights stay around for the "start" evaluation.
        state = on_mesh(learner.init_state(learner.owned(student.params), tx), mesh)
        state = checkpoints.restore_latest(state) or state
        first = int(state.step)

        # --- environment side -----------------------------------------------------------------
        env = assembly.environment(cfg, student.tokenizer)
        source = TaskSource(env.module.tasks(env.settings, cfg.env.train_split), cfg.seed)
        collect = make_collect(cfg, env, source, student, teacher, algorithm, stop.check)

        # --- compiled functions ---------------------------------------------------------------
        score = BatchScorer(student, cfg, mesh)
        judge = Judge(cfg, mesh, student, teacher, algorithm)
        signal = jax.jit(algorithm.signal)
        update = learner.make_update(
            student.lm,
            tx,
            rate,
            loss=config.section(LossConfig, cfg.loss),
            score=assembly.score_config(cfg, student.tokenizer, mesh),
        )
        update = learner.whole_state(update)

        # --- loop -----------------------------------------------------------------------------
        writer = Writer(out, resume_step=first) if cluster.is_first() else Muted()
        for part in (checkpoints, writer, env.pool):
            stack.callback(part.close)
        observer = Observer(cfg, mesh, env, student, teacher, writer, out, stop.check)
        try:
            observer.reference("start", student, student.params)
            if teacher:
                observer.reference("teacher", teacher, teacher.params)
            bar = Progress(
                cfg.total_steps,
                start=first,
                description=cfg.algorithm.name,
                stream=sys.stderr if cluster.is_first() else io.StringIO(),
            )
            stack.callback(bar.close)
            for step in range(first, cfg.total_steps):
                # Order matters: both see the parameters that this step samples from.
                if due(step, cfg.eval.every):
                    observer.curve(step, state.params)
                if due(step, cfg.save_every) and step > first:
                    checkpoints.save(step, state)

                env.pool.take_counts()  # those of an evaluation
                clock = Clock()
                trajectories = collect(step, state.params)
                clock.lap("rollout")
                batch = pack(cfg, mesh, trajectories, env.renderer.pad_id, step)
                clock.lap("pack")
                mask = to_host(batch.rows.action_mask)
                s = score(state.params, batch.rows, mask)
                t = judge(step, state.params, batch, mask)
                sig = signal(batch, s, t, state.step)
                if cfg.loss.kl_coef:
                    start = score(student.params, batch.rows, mask)
                    sig = sig.replace(reference_logp=start.logp)
                means = [jax.block_until_ready(sig.diagnostics)]
                clock.lap("score")
                if cfg.record:
                    observer.record(step, trajectories, batch, s, t)
                    clock.lap("record")
                room = head_room(cfg, mesh, mask)
                for piece in learner.minibatches(
                    batch,
                    sig,
                    minibatch_rows=cfg.packing.minibatch_rows,
                    aggregation=cfg.loss.aggregation,
                ):
                    state, metrics = update(state, piece, room, judge.head)
                    means.append(metrics)
                scalars = finite_scalars(means, step, out)
                state = state.replace(step=state.step + 1)
                clock.lap("update")

                scalars |= rollout_scalars(trajectories) | clock.scalars()
                scalars |= env_scalars(cfg, trajectories, env.pool.take_counts(), clock.scalars())
                writer.scalars(step, scalars)
                bar.advance(scalars)
            checkpoints.save(cfg.total_steps, state)
            observer.curve(cfg.total_steps, state.params)
            observer.reference("final", student, state.params)
        except cli.Interrupted:
            checkpoints.save(int(state.step), state)
            raise
        conclude(cfg, out, student, state.params, observer)


def open_workdir(out: Path, cfg: ConfigDict) -> Path:
    """Creates the folder and pins the config to it.

    Raises:
      ValueError: the folder holds a run with another config; lists the keys that differ.
    """
    record, resolved = out / "run_config.json", cli.to_json(cfg)
    if record.is_file() and record.read_text() != resolved:
        old, new = (flatten(json.loads(text)) for text in (record.read_text(), resolved))
        differing = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
        shown = ", ".join(f"{k} ({old.get(k)!r} there, {new.get(k)!r} now)" for k in differing[:5])
        raise ValueError(
            f"--workdir={out} holds a run with another config: {shown}; use a new folder, or the "
            "same config to resume it"
        )
    if out.exists() and not out.is_dir():
        raise ValueError(f"--workdir={out} is a file; name a folder")
    out.mkdir(parents=True, exist_ok=True)
    if cluster.is_first():
        record.write_text(resolved)
    return out


def conclude(cfg: ConfigDict, out: Path, student: Model, params: Any, observer: Observer) -> None:
    """Writes the report and, if asked, the student as a Hugging Face folder."""
    artifacts = {
        "metrics": "metrics.jsonl, tensorboard/",
        "transcripts with d, h and w per turn": "transcripts/",
        "evaluations": "evaluations/",
        "checkpoints": "checkpoints/",
    }
    if cfg.record:
        artifacts["training episodes, a TFDS data set"] = "episodes/"
    if cfg.export:
        params = student.lm.plain(params)
        params = jax.tree.map(to_host, params)  # of every device, in every process
    if not cluster.is_first():
        return
    if cfg.export:
        save_hf(cfg.export, student.lm.config, params, tokenizer=student.tokenizer)
        artifacts["trained student, Hugging Face format"] = cfg.export
    device = jax.devices()[0]
    path = write_report(
        out,
        title=f"{cfg.algorithm.name} on {cfg.env.name}, {cfg.total_steps} steps",
        command="python -m atod_jax.train " + " ".join(sys.argv[1:]),
        evaluations=observer.references,
        curve=read_curve(out),
        curve_temperature=cfg.eval.curve_temperature,
        settings={
            "config digest": config_digest(cfg.to_dict()),
            "student": str(cfg.student.path),
            "teacher": str(cfg.teacher.path) or "none",
            "seed": cfg.seed,
            "evaluation split": cfg.eval.split,
            "devices": f"{jax.device_count()} x {device.platform} {device.device_kind}",
        }
        | package_versions(),
        artifacts=artifacts,
    )
    print(f"report: {path}")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat = {}
    for name, value in tree.items():
        key_name = f"{prefix}{name}"
        flat |= flatten(value, key_name + ".") if isinstance(value, dict) else {key_name: value}
    return flat


def require_teacher(cfg: ConfigDict, teacher: Model | None, algorithm: Algorithm) -> None:
    """An algorithm that distils needs someone to distil from.

    Raises:
      ValueError: it has no teacher.
    """
    own = algorithm.context.self_teacher or not algorithm.needs_teacher(0)
    demonstrates = algorithm.rollout_plan(0, cfg.env.max_turns).prefix_by == "teacher"
    if teacher is None and (demonstrates or not own):
        raise ValueError(
            f"teacher.path='': algorithm.name={cfg.algorithm.name!r} needs a teacher; "
            "set --config.teacher.path to a Hugging Face folder or household/<name>"
        )


class Judge:
    """The teacher's statistics of a batch: of another model, or of the student who reads more."""

    def __init__(
        self,
        cfg: ConfigDict,
        mesh: Mesh,
        student: Model,
        teacher: Model | None,
        algorithm: Algorithm,
    ):
        context, self._needed = algorithm.context, algorithm.needs_teacher
        self._params = None if context.self_teacher or teacher is None else teacher.params
        model = student if context.self_teacher else teacher
        self._score = model and BatchScorer(model, cfg, mesh, keep_states=context.states)
        # the matrix that goes with the states of an exact KL
        self.head = _head_at(model, mesh) if context.states else None

    def __call__(
        self, step: int, student_params: Any, batch: TurnBatch, mask: np.ndarray
    ) -> TokenStats | None:
        if not self._needed(step):
            return None
        params = student_params if self._params is None else self._params
        return self._score(params, teacher_rows(batch), mask)


def _head_at(model: Model, mesh: Mesh) -> jax.Array:
    """The model's output embedding where the student's head is computed, split in the same way."""
    with jax.set_mesh(model.layout.mesh):
        head = model.lm.head(model.params)
    return put(head, NamedSharding(mesh, PartitionSpec(VOCAB)))


def due(step: int, every: int) -> bool:
    """True on multiples of `every`; never when it is 0."""
    return every > 0 and step % every == 0


def start(cfg: ConfigDict, workdir: str) -> None:
    """Trains, or says what training would need."""
    if _DRY_RUN.value:
        dry_run.main(cfg, _HARDWARE.value)
    else:
        main(cfg, workdir)


if __name__ == "__main__":
    cli.run(start, workdir_required=lambda: not _DRY_RUN.value)
