"""`python -m atod_jax.evaluate --config=… --checkpoint=…`: how well a policy plays."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from atod_jax import cluster
from atod_jax.config import section
from atod_jax.device.learner import init_state
from atod_jax.device.optim import OptimConfig, make_optimizer
from atod_jax.results.checkpoint import Checkpointer
from atod_jax.results.intervals import EvalResult, Interval
from atod_jax.results.report import evaluation_table, markdown_table, package_versions
from atod_jax.run import assembly, cli
from atod_jax.run.assembly import Model
from atod_jax.run.evaluation import Evaluator
from atod_jax.run.layouts import Layouts, layouts_of
from atod_jax.sharding import on_mesh
from atod_jax.types import TrainState


def restore_params(cfg: ConfigDict, checkpoint: Path, student: Model) -> Any:
    """Student parameters of a training run's latest (or a given) step.

    Args:
      checkpoint: a workdir, its `checkpoints` folder, or one step inside it.
    """
    folder = checkpoint / "checkpoints" if (checkpoint / "checkpoints").is_dir() else checkpoint
    step = int(folder.name) if folder.name.isdigit() else None
    checkpointer = Checkpointer(folder.parent if step is not None else folder, read_only=True)
    tx = make_optimizer(section(OptimConfig, cfg.optim))
    state: TrainState = on_mesh(init_state(student.params, tx), student.layout.mesh)
    step = checkpointer.latest_step() if step is None else step
    if step is None:
        raise FileNotFoundError(f"--checkpoint={checkpoint}: no saved step there")
    if cfg.student.lora_rank:
        require_same_base(cfg, checkpointer.saved_config(step), checkpoint)
    return checkpointer.restore(step, state).params


def require_same_base(cfg: ConfigDict, saved: Mapping[str, Any], checkpoint: Path) -> None:
    """Adapters are only worth something beside the weights they were trained with.

    Raises:
      ValueError: `saved`, the config of the run, has other ones or another scale.
    """
    for name in ("path", "lora_rank", "lora_alpha"):
        ours, theirs = cfg.student[name], saved.get("student", {}).get(name)
        if ours != theirs:
            raise ValueError(
                f"student.{name}={ours!r}, but the adapters in {checkpoint} were trained with "
                f"{theirs!r}; set --config.student.{name} to that"
            )


def load_policy(cfg: ConfigDict, checkpoint: str, layouts: Layouts) -> Model:
    """The student with the weights of a run, of one step of it, or of a Hugging Face folder.

    A Hugging Face folder takes the place of cfg.student.path; "" leaves that as it is.
    """
    path = Path(checkpoint)
    is_hf = (path / "config.json").is_file() or not path.exists()
    if checkpoint and is_hf:
        cfg.student.path, cfg.student.fresh.hidden_size = checkpoint, 0
    model = assembly.load_student(cfg, layouts)
    if not checkpoint or is_hf:
        return model
    return model._replace(params=restore_params(cfg, path, model))


CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "", "a workdir of train, a step folder in it, or a Hugging Face folder"
)


def main(cfg: ConfigDict, workdir: str) -> None:
    """The command."""
    evaluate(cfg, CHECKPOINT.value, workdir)


def evaluate(cfg: ConfigDict, checkpoint: str, workdir: str) -> dict[str, EvalResult]:
    """Plays cfg.eval.split at cfg.eval.temperatures; prints a table, writes it and JSON.

    Args:
      checkpoint: a run of `train` (its latest step), one step of it, or a Hugging Face folder;
        "" evaluates cfg.student.path as it is.
      workdir: where evaluation.md and evaluation.json go; "" writes nothing.

    Returns:
      A result per temperature, named as in the table.
    """
    layouts = layouts_of(cfg)
    with jax.set_mesh(layouts.student.mesh):
        model = load_policy(cfg, checkpoint, layouts)
        env = assembly.environment(cfg, model.tokenizer)
        tasks = env.tasks(cfg.eval.split, cfg.eval.final_tasks)
        results = {}
        for temperature in cfg.eval.temperatures:
            evaluator = Evaluator(cfg, model, env, temperature=temperature)
            result, _ = evaluator.run(model.params, tasks, passes=cfg.eval.passes)
            results[f"T={temperature}"] = result
        env.pool.close()
    if not cluster.is_first():
        return results
    table = evaluation_table(results)
    print(f"{cfg.env.name}, {cfg.eval.split}: {len(tasks)} tasks, seed {cfg.seed}\n\n{table}")
    if workdir:
        write(Path(workdir), protocol(cfg, checkpoint, len(tasks)), results)
    return results


def protocol(cfg: ConfigDict, checkpoint: str, tasks: int) -> dict[str, Any]:
    """Everything that has to be equal for two evaluations to be comparable."""
    whole = cfg.eval.final_tasks == 0
    return {
        "environment": cfg.env.name,
        "data": cfg.env.games or cfg.env.data or f"generated, seed {cfg.env.seed}",
        "split": cfg.eval.split,
        "tasks": f"{tasks}, {'the whole split' if whole else 'the first of the split'}",
        "model": checkpoint or cfg.student.path,
        "prompt template": cfg.env.template,
        "history": cfg.env.history,
        "turn limit": cfg.env.max_turns,
        "temperatures": list(cfg.eval.temperatures),
        "top k, top p": [cfg.sampling.top_k, cfg.sampling.top_p],
        "new tokens per turn": cfg.sampling.max_new_tokens,
        "prompt tokens": cfg.sampling.prompt_buckets[-1],
        "thinking mode of the chat template": "off",
        "sampling seeds": [cfg.seed + n for n in range(cfg.eval.passes)],
        "success": "the environment says so at the end of the episode",
        "intervals": "95 %, clustered by task",
    } | package_versions()


def write(out: Path, protocol: dict[str, Any], results: dict[str, EvalResult]) -> None:
    """evaluation.md for people and evaluation.json for programs, both with the protocol."""
    out.mkdir(parents=True, exist_ok=True)
    failed = sorted({task for result in results.values() for task in result.failed})
    lines = [f"# {protocol['environment']}, {protocol['split']}", evaluation_table(results)]
    if failed:
        lines.append("Could not be played, counted as not solved: " + ", ".join(failed))
    lines += ["## Protocol", markdown_table(["what", "value"], list(protocol.items()))]
    (out / "evaluation.md").write_text("\n\n".join(lines) + "\n")
    payload = {
        "protocol": protocol,
        "results": {name: result.to_json() for name, result in results.items()},
        "summary": {name: summary(result) for name, result in results.items()},
    }
    (out / "evaluation.json").write_text(json.dumps(payload, indent=1))


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
    }


if __name__ == "__main__":
    cli.run(main, workdir_required=False)
