"""Trains a student: rollout -> pack -> score (student, teacher) -> signal -> update, step by step.

    python -m atod_jax.train --config=quickstart --workdir=runs/a
    python -m atod_jax.train --config=configs/household.py:algo=grpo --config.optim.lr=1e-4 ...

Everything that defines the future of a run is the train state and its options, so an iteration can
be abandoned at any point and played again; stopping and resuming rely on that.
"""

import argparse
import contextlib
import sys
from pathlib import Path

import jax

from atod_jax import cluster
from atod_jax.config import Run, defining, to_plain
from atod_jax.envs.pool import BrokenEnvironment
from atod_jax.estimate import dry_run
from atod_jax.results.checkpoint import Checkpointer
from atod_jax.results.metrics import Muted, Writer, read_records
from atod_jax.results.progress import Progress
from atod_jax.results.terminal import LOG, Terminal
from atod_jax.results.trackers import open_trackers
from atod_jax.run import cli, parts, workdir
from atod_jax.run.batch import pack
from atod_jax.run.collectors import make_collector
from atod_jax.run.compiling import PROGRAMS, Compiling
from atod_jax.run.conclusion import conclude, require_export
from atod_jax.run.iteration_metrics import Clock, finite_scalars, iteration_scalars, require_finite
from atod_jax.run.known import require_known
from atod_jax.run.layouts import layouts_of
from atod_jax.run.learning import Learner
from atod_jax.run.models import fresh_state, load_student, load_teacher
from atod_jax.run.observer import Observer, due
from atod_jax.run.scorers import SignalMaker, require_teacher


def main(cfg: Run, folder: str) -> None:
    """Runs a whole training run, or what is left of it, in a folder that is no other run's."""
    require_export(cfg, Path(folder))
    require_known(cfg)
    with workdir.claimed(folder) as out:
        workdir.open_workdir(out, cfg)
        train(cfg, out)


def train(cfg: Run, out: Path) -> None:
    """Runs what is left of a run in its folder."""
    layouts = layouts_of(cfg)
    mesh = layouts.student.mesh
    with jax.set_mesh(mesh), cli.StopRequest() as stop, contextlib.ExitStack() as stack:
        terminal = stack.enter_context(Terminal(out / LOG if cluster.is_first() else None))
        terminal.note(cli.command_line())
        compiling = stack.enter_context(watch_compiling(cfg))
        progress = make_progress(cfg, terminal, compiling)
        student = load_student(cfg.student, layouts, seed=cfg.seed)
        teacher = load_teacher(cfg.teacher, student, layouts)
        algorithm = parts.algorithm(cfg)
        require_teacher(cfg, teacher, algorithm)
        state = fresh_state(cfg.optim, student)
        checkpoints = Checkpointer(
            out / "checkpoints", keep=cfg.keep_checkpoints, config=to_plain(cfg)
        )
        state = checkpoints.restore_latest(state) or state
        first = workdir.first_step(cfg, int(state.step))

        env = parts.environment(cfg, student.tokens)
        roles: dict = {"student": student, "teacher": teacher, "algorithm": algorithm}
        watch: dict = {"between_turns": stop.check, "playing": progress.playing}
        collect = make_collector(cfg, env, **watch, **roles)
        make_signal = SignalMaker(cfg, mesh, **roles)
        learn = Learner(cfg, student)
        writer = make_writer(cfg, out, first)
        for part in (checkpoints, writer, env.pool):
            stack.callback(part.close)
        keeps: dict = {"writer": writer, "progress": progress, "out": out}
        observer = Observer(cfg, mesh, env=env, between_turns=stop.check, **keeps, **roles)
        if first < cfg.total_steps:
            collect.prepare(first)
        progress.begin(first, read_records(out))
        observer.begin(first)
        try:
            for step in range(first, cfg.total_steps):
                params = student.lm.join(state.params, state.frozen)
                # Order matters: both see the parameters that this step samples from.
                if due(step, cfg.eval.every):
                    observer.curve(step, params)
                if due(step, cfg.save_every) and step > first:
                    checkpoints.save(step, state)

                env.pool.take_counts()  # those of an evaluation
                clock = Clock(compiling)
                trajectories = collect(step, params)
                clock.lap("rollout")
                packed = pack(cfg, trajectories, student=student, step=step)
                clock.lap("pack")
                scored, signal = make_signal(step, params, packed=packed)
                means = [jax.block_until_ready(signal.diagnostics)]
                clock.lap("score")
                shown = due(step, cfg.eval.every)
                learnt = {"packed": packed, "scored": scored, "signal": signal, "show": shown}
                observer.experience(step, params, trajectories, **learnt)
                clock.lap("record")
                head = make_signal.teacher_head(scored)
                state, metrics = learn(state, packed, signal=signal, head=head)
                means += metrics
                scalars = finite_scalars(means, step, out) | collect.take_metrics()
                require_finite(state, step, out)
                scalars["batch/useful_tokens"] = packed.useful
                state = state.replace(step=state.step + 1)
                clock.lap("update")
                counted: dict = {"groups": collect.groups, "counts": env.pool.take_counts()}
                scalars |= iteration_scalars(trajectories, env.renderer, clock=clock, **counted)
                if step == first:
                    workdir.pin(out, cfg)
                writer.scalars(step, scalars)
                observer.judge(step, scalars)
                progress.advance(scalars, observer.coming(step + 1))
            checkpoints.save(cfg.total_steps, state)
            params = student.lm.join(state.params, state.frozen)
            observer.end(params)
        except (cli.Interrupted, BrokenEnvironment):
            checkpoints.save(int(state.step), state)
            raise
        progress.close()
        conclude(cfg, out, student, params=params, references=observer.references)


def make_writer(cfg: Run, out: Path, first: int) -> Writer | Muted:
    """The record of the run, which the first process keeps."""
    if not cluster.is_first():
        return Muted()
    options = defining(cfg)
    trackers = open_trackers(cfg.track, out, options)
    return Writer(out, resume_step=first, options=options, trackers=trackers)


def watch_compiling(cfg: Run) -> Compiling:
    """Tells, in the first process, which of the large programs of the run is compiled."""
    programs = len(PROGRAMS) + bool(cfg.teacher.path)

    def show(line: str) -> None:
        if cluster.is_first():
            print(line, file=sys.stderr, flush=True)

    return Compiling(programs, show)


def make_progress(cfg: Run, terminal: Terminal, compiling: Compiling) -> Progress:
    """What the first process shows of how far the run is; the others show nothing."""
    return Progress(
        terminal,
        total=cfg.total_steps,
        title=f"{cfg.algorithm.name} on {cfg.env.name}",
        lost=lambda: compiling.seconds,
        quiet=not cluster.is_first(),
    )


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The program's own flags."""
    add = parser.add_argument
    add("--dry_run", action="store_true", help="print what the run would need, and stop")
    add("--hardware", default="local", help="with --dry_run: h100, h100-8, v5e-16, v5p-64 …")
    add("--details", action="store_true", help="with --dry_run: also options, arrays and kernels")


def start(cfg: Run, flags: cli.Flags) -> None:
    """Trains, or says what training would need.

    Raises:
      ValueError: hardware is named, but no dry run is asked for.
    """
    if not flags.dry_run and (flags.details or flags.hardware != "local"):
        raise ValueError("--hardware and --details say what a dry run shows: add --dry_run")
    if flags.dry_run:
        dry_run.main(cfg, flags.hardware, details=flags.details)
    else:
        main(cfg, flags.workdir)


PROGRAM = cli.Program(
    "train", __doc__, start, add_flags=add_flags, needs_workdir=lambda flags: not flags.dry_run
)

if __name__ == "__main__":
    cli.run(PROGRAM)
