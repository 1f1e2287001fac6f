"""What a training run shows of itself: evaluations, transcripts with the turn table, the curve."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from atod_jax import cluster
from atod_jax.algorithms.base import Step
from atod_jax.config.sections import Run
from atod_jax.episodes.store import EpisodeWriter
from atod_jax.episodes.tokens import tokenizer_digest
from atod_jax.records import CUT, Trace, Trajectory
from atod_jax.results.files import write_text
from atod_jax.results.intervals import EvalResult
from atod_jax.results.metrics import Muted, Writer
from atod_jax.results.progress import Progress
from atod_jax.results.report import warnings_of
from atod_jax.results.runs import read_evaluation
from atod_jax.results.transcripts import records, write_records, write_transcripts
from atod_jax.run.batch import Packed
from atod_jax.run.closing import outcome
from atod_jax.run.evaluation import Evaluator
from atod_jax.run.iteration_metrics import Judge
from atod_jax.run.known import take_known
from atod_jax.run.models import Model
from atod_jax.run.parts import Algorithm, Environment
from atod_jax.run.traces import Tracer, make_row_table, surprise, to_show, traces_of
from atod_jax.types import Signal

POOL = 4  # times the episodes that are shown are scored, to choose from


def due(step: int, every: int) -> bool:
    """True on multiples of `every`; never when it is 0."""
    return every > 0 and step % every == 0


def to_come(cfg: Run, done: int, *, curve: int, final: int) -> int:
    """Episodes of the evaluations after `done` steps: `curve` tasks for each point and the last,
    `final` ones per seed and temperature at the end."""
    ev = cfg.eval
    points = 0
    if ev.every:
        first = -(-done // ev.every) * ev.every
        points = len(range(first, cfg.total_steps, ev.every)) + 1
    return points * curve + final * ev.passes * len(ev.temperatures)


class Observer:
    """Evaluates while training and keeps what it found in the workdir."""

    def __init__(
        self,
        cfg: Run,
        mesh: Mesh,
        *,
        env: Environment,
        student: Model,
        teacher: Model | None,
        algorithm: Algorithm,
        writer: Writer | Muted,
        progress: Progress,
        out: Path,
        between_turns: Callable[[], None],
    ):
        self._cfg, self._mesh, self._env, self._writer = cfg, mesh, env, writer
        self._progress = progress
        self._student, self._teacher = student, teacher
        self._out, self._folder, self._stop = out, out / "evaluations", between_turns
        self._evaluators: dict[tuple[Any, float], Evaluator] = {}  # compiled once each
        self._curve = self._evaluator(student, cfg.eval.curve_temperature)
        self._tasks = env.tasks(cfg.eval.split, cfg.eval.tasks)
        self._final_tasks = env.tasks(cfg.eval.split, cfg.eval.final_tasks)
        self._tracer = teacher and Tracer(
            cfg, mesh, student=student, teacher=teacher, algorithm=algorithm
        )
        self._row_table = self._tracer.row_table if self._tracer else make_row_table(algorithm)
        digest = tokenizer_digest(student.tokenizer)
        self._recorder = EpisodeWriter(out / "episodes", digest) if cfg.record else None
        self.references: dict[str, dict[float, EvalResult]] = {}
        self._judge = Judge()

    def _evaluator(self, model: Model, temperature: float) -> Evaluator:
        slot = (model.lm, temperature)
        if slot not in self._evaluators:
            self._evaluators[slot] = Evaluator(
                self._cfg, model, self._env, temperature=temperature, stop=self._stop
            )
        return self._evaluators[slot]

    def begin(self, first: int) -> None:
        """Evaluates student and teacher as they are before the first step."""
        if first < self._cfg.total_steps:
            self._forget("final")  # of a run that goes on for longer now
        self.reference("start", self._student, self._student.params)
        if self._teacher:
            self.reference("teacher", self._teacher, self._teacher.params)

    def end(self, params: Any) -> None:
        """Evaluates the student after the last step."""
        if self._cfg.eval.every:
            self.curve(self._cfg.total_steps, params)
        self.reference("final", self._student, params)

    def coming(self, done: int) -> int:
        """Episodes of the evaluations that follow once `done` steps are done."""
        return to_come(self._cfg, done, curve=len(self._tasks), final=len(self._final_tasks))

    def _teacher_at(self, temperature: float) -> EvalResult | None:
        return self.references.get("teacher", {}).get(temperature)

    def _forget(self, name: str) -> None:
        """Drops the stored evaluation of a policy that goes on learning."""
        if cluster.is_first():
            for path in self._folder.glob(f"{name}-T*.json"):
                path.unlink()

    def reference(self, name: str, model: Model, params: Any) -> None:
        """The full evaluation of one policy at every final temperature; stored, so run once."""
        self.references[name] = {}
        for temperature in self._cfg.eval.temperatures:
            path = self._folder / f"{name}-T{temperature:g}.json"
            if not cluster.first_says(cluster.is_first() and self._is_known(name, path)):
                self._play(name, model, params, temperature=temperature, path=path)
            found = cluster.first_says(read_evaluation(path) if cluster.is_first() else None)
            self.references[name][temperature] = found

    def _is_known(self, name: str, path: Path) -> bool:
        return path.is_file() or take_known(self._cfg, name, path)

    def _play(
        self, name: str, model: Model, params: Any, *, temperature: float, path: Path
    ) -> None:
        """Evaluates, and keeps and tells what was found."""
        evaluator, passes = self._evaluator(model, temperature), self._cfg.eval.passes
        tasks = self._final_tasks
        what, again = f"{name} at T={temperature:g}", name != "teacher"
        with self._progress.evaluation(what, len(tasks) * passes, again=again) as ended:
            result, played = evaluator.run(params, tasks, passes=passes, ended=ended)
        if not cluster.is_first():
            return
        told = records(played, None, self._env.renderer.speller)
        write_records(path.with_suffix(".jsonl.gz"), told)
        write_text(path, json.dumps(result.to_json()))
        print(outcome(name, result, self._teacher_at(temperature) if again else None), flush=True)
        if not self.references[name]:  # of other temperatures the report warns
            for warning in warnings_of({f"({name})": result}):
                cluster.warn(warning)

    def curve(self, step: int, params: Any) -> None:
        """One point of the success curve, with a few episodes to read."""
        with self._progress.evaluation(f"step {step}", len(self._tasks)) as ended:
            result, trajectories = self._curve.run(params, self._tasks, ended=ended)
        rate = result.rate()
        if cluster.is_first():
            teacher = self._teacher_at(self._curve.temperature)
            print(outcome(f"step {step}", result, teacher), flush=True)
        if result.failed:
            share = f"{100 * result.failed_share:.1f} % of its episodes could not be played"
            cluster.warn(f"evaluation at step {step}: {share}")
        scalars = {
            "eval/success": rate.value,
            "eval/success_low": rate.low,
            "eval/success_high": rate.high,
            "eval/score": result.mean_score().value,
            "eval/failed": float(len(result.failed)),
            "eval/turns": float(np.mean(result.turns)),
            "eval/valid_actions": result.valid_rate,
            "eval/cut": result.problem_shares().get(CUT, 0.0),
        }
        scalars |= {f"eval/success/{k}": r.value for k, r in result.rate_by_kind().items()}
        self._writer.scalars(step, scalars)
        self._progress.evaluated(step, scalars)
        pool = [trajectories[i] for i in to_show(trajectories, POOL * self._cfg.log_transcripts)]
        traces = self._tracer(params, pool, step=step) if self._tracer and pool else None
        self._show(step, "eval", pool, traces=traces)

    def _show(
        self, step: int, name: str, episodes: Sequence[Trajectory], *, traces: list[Trace] | None
    ) -> None:
        """Writes the most telling of some episodes."""
        known = [Trace()] * len(episodes) if traces is None else traces
        chosen = to_show(episodes, self._cfg.log_transcripts, [surprise(t) for t in known])
        if cluster.is_first() and chosen:
            text = write_transcripts(
                self._out,
                step,
                name,
                episodes=[episodes[i] for i in chosen],
                traces=[known[i] for i in chosen],
                speller=self._env.renderer.speller,
            )
            self._writer.text(step, f"episodes/{name}", text)

    def judge(self, step: int, scalars: Mapping[str, float]) -> None:
        """Warns of a teacher that cannot lead this student, and of steps that teach nothing."""
        for text in self._judge(step, scalars):
            cluster.warn(text)

    def experience(
        self,
        step: int,
        params: Any,
        trajectories: Sequence[Trajectory],
        *,
        packed: Packed,
        scored: Step,
        signal: Signal,
        show: bool,
    ) -> None:
        """Keeps what a step has learnt from: all episodes of a run that records them, and where
        `show` says so the most telling ones to read."""
        if not (self._cfg.record or (show and self._cfg.log_transcripts)):
            return
        traces = traces_of(self._row_table, packed, trajectories, scored=scored, signal=signal)
        if cluster.is_first() and self._recorder:
            self._recorder.write(step, trajectories, traces)
        if not show:
            return
        if cluster.is_first():
            write_text(self._out / "transcripts" / f"{step:06d}-turns.json", by_number(traces))
        chosen = to_show(trajectories, self._cfg.log_transcripts, [surprise(t) for t in traces])
        episodes, known = [trajectories[i] for i in chosen], [traces[i] for i in chosen]
        if self._tracer and chosen:
            asked = self._tracer(params, episodes, step=step)
            known = [t._replace(instead=a.instead) for t, a in zip(known, asked, strict=True)]
        self._show(step, "train", episodes, traces=known)


def by_number(traces: Sequence[Trace]) -> str:
    """Mean disagreement d of the turns of each number, and how many there were, as JSON."""
    columns = [trace.turns["d"] for trace in traces if "d" in trace.turns]
    longest = max(map(len, columns), default=0)
    turns = [[c[k] for c in columns if k < len(c) and np.isfinite(c[k])] for k in range(longest)]
    table = {"gap": [float(np.mean(x)) if x else None for x in turns], "turns": [*map(len, turns)]}
    return json.dumps(table)
