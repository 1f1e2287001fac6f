"""How well a policy plays: whole splits, several temperatures, with intervals.

    python -m atod_jax.evaluate --checkpoint=runs/a --workdir=runs/eval
    python -m atod_jax.evaluate --config=household --checkpoint=some/model --config.eval.passes=4

A run is evaluated as it is configured; overrides go on top and are printed.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from atod_jax import cluster
from atod_jax.config import Run, defining
from atod_jax.options.plugins import key
from atod_jax.results.files import make_folder, write_text
from atod_jax.results.intervals import EvalResult, Interval
from atod_jax.results.page import Batch, write_page
from atod_jax.results.progress import Progress
from atod_jax.results.provenance import package_versions
from atod_jax.results.report import evaluation_table, warnings_of
from atod_jax.results.runs import RunRecord
from atod_jax.results.tables import cell_text, markdown_table
from atod_jax.results.terminal import Terminal
from atod_jax.results.transcripts import records, write_records
from atod_jax.run import cli
from atod_jax.run.checkpoints import add_checkpoint, own_config
from atod_jax.run.closing import outcome
from atod_jax.run.evaluation import Evaluator
from atod_jax.run.layouts import layouts_of
from atod_jax.run.models import load_policy
from atod_jax.run.parts import environment

_NAMED = 50  # tasks that could not be played


def evaluate(cfg: Run, checkpoint: str, workdir: str) -> dict[str, EvalResult]:
    """Plays cfg.eval.split at cfg.eval.temperatures; prints a table, writes it and JSON.

    Args:
      checkpoint: a run of `train` (its latest step), one step of it, or a Hugging Face folder;
        "" evaluates cfg.student.path as it is.
      workdir: where evaluation.md, evaluation.json, the episodes of the first seed and a page of
        them (evaluation.html) go; "" writes nothing.

    Returns:
      A result per temperature, named as in the table.
    """
    if workdir and cluster.is_first():
        make_folder(Path(workdir))
    layouts = layouts_of(cfg)
    with jax.set_mesh(layouts.student.mesh), Terminal() as terminal:
        progress = Progress(terminal, quiet=not cluster.is_first())
        model = load_policy(cfg, checkpoint, layouts)
        env = environment(cfg, model.tokens)
        tasks = env.tasks(cfg.eval.split, cfg.eval.final_tasks)
        results, batches = {}, []
        for temperature in cfg.eval.temperatures:
            evaluator = Evaluator(cfg, model, env, temperature=temperature)
            name, passes = f"T={temperature}", cfg.eval.passes
            what = f"{cfg.eval.split} at T={temperature:g}"
            with progress.evaluation(what, len(tasks) * passes) as ended:
                found = evaluator.run(model.params, tasks, passes=passes, ended=ended)
                results[name], played = found
            if cluster.is_first():
                print(outcome(cfg.eval.split, results[name]), flush=True)
            if cluster.is_first() and workdir:
                told = list(records(played, None, env.renderer.speller))
                batches.append(Batch(f"T{temperature:g}", what, None, told))
        env.pool.close()
    if not cluster.is_first():
        return results
    table = evaluation_table(results)
    print(f"\n{cfg.env.name}, {cfg.eval.split}: {len(tasks)} tasks, seed {cfg.seed}\n\n{table}")
    for warning in warnings_of({f"at {name}": result for name, result in results.items()}):
        print(warning)
    if workdir:
        out = Path(workdir)
        write(out, protocol(cfg, checkpoint, len(tasks)), results)
        run = RunRecord(out, defining(cfg), (), {}, name=checkpoint or cfg.student.path)
        for batch in batches:
            write_records(out / f"episodes-{batch.name}.jsonl.gz", batch.episodes)
        print(f"page: {write_page(out / 'evaluation.html', [run], batches=batches).path}")
    return results


def protocol(cfg: Run, checkpoint: str, tasks: int) -> dict[str, Any]:
    """Everything that has to be equal for two evaluations to be comparable."""
    which = (
        "the first of the split in its fixed order" if cfg.eval.final_tasks else "the whole split"
    )
    return {
        "environment": cfg.env.name,
        "options of the environment": ", ".join(_own_options(cfg)) or "none",
        "split": cfg.eval.split,
        "tasks": f"{tasks}, {which}",
        "model": checkpoint or cfg.student.path,
        "prompt template": cfg.env.template,
        "history": cfg.env.history,
        "turn limit": cfg.env.max_turns,
        "temperatures": list(cfg.eval.temperatures),
        "episodes side by side": cfg.eval.slots,
        "top k, top p": [cfg.sampling.top_k, cfg.sampling.top_p],
        "new tokens per turn": cfg.sampling.max_new_tokens,
        "prompt tokens": cfg.sampling.prompt_buckets[-1],
        "thinking mode of the chat template": "on" if cfg.env.thinking else "off",
        "actions are looked for": f"{cfg.env.actions} (env.actions)",
        "sampling seeds": [cfg.seed + n for n in range(cfg.eval.passes)],
        "success": "the environment says so at the end of the episode",
        "intervals": "95 %, clustered by task",
    } | package_versions()


def _own_options(cfg: Run) -> list[str]:
    prefix = f"env.{key(cfg.env.name)}."
    return [
        f"{k.removeprefix(prefix)}={v}" for k, v in defining(cfg).items() if k.startswith(prefix)
    ]


def write(out: Path, protocol: dict[str, Any], results: dict[str, EvalResult]) -> None:
    """evaluation.md for people and evaluation.json for programs, both with the protocol."""
    failed = sorted({task for result in results.values() for task in result.failed})
    lines = [f"# {protocol['environment']}, {protocol['split']}", evaluation_table(results)]
    if failed:
        named = ", ".join(cell_text(task) for task in failed[:_NAMED])
        more = f" and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
        lines.append(f"Could not be played, counted as not solved: {named}{more}")
    lines += ["## Protocol", markdown_table(["what", "value"], list(protocol.items()))]
    write_text(out / "evaluation.md", "\n\n".join(lines) + "\n")
    payload = {
        "protocol": protocol,
        "results": {name: result.to_json() for name, result in results.items()},
        "summary": {name: summary(result) for name, result in results.items()},
    }
    write_text(out / "evaluation.json", json.dumps(payload, indent=1))


def summary(result: EvalResult) -> dict[str, Any]:
    """The numbers of the table: [value, low, high] as shares."""

    def plain(interval: Interval) -> list[float]:
        return [interval.value, interval.low, interval.high]

    return {
        "success": plain(result.rate()),
        "success by task type": {k: plain(r) for k, r in result.rate_by_kind().items()},
        "score": plain(result.mean_score()),
        "score by task type": {k: plain(r) for k, r in result.mean_score_by_kind().items()},
        f"pass@{result.seeds}": plain(result.pass_at_k()),
        "turns": float(np.mean(result.turns)),
        "valid responses": result.valid_rate,
        "problems of responses": result.problem_shares(),
        "could not be played": result.failed_share,
    }


def start(cfg: Run, flags: cli.Flags) -> None:
    """Evaluates what the flags name."""
    evaluate(cfg, flags.checkpoint, flags.workdir)


PROGRAM = cli.Program("evaluate", __doc__, start, add_flags=add_checkpoint, fallback=own_config)

if __name__ == "__main__":
    cli.run(PROGRAM)
