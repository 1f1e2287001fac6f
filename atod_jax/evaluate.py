"""`python -m atod_jax.evaluate --config=… --checkpoint=…`: how well a policy plays."""

import json
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from atod_jax import assembly, cli
from atod_jax.assembly import Model
from atod_jax.checkpoint import Checkpointer
from atod_jax.config import section
from atod_jax.evaluation import Evaluator
from atod_jax.intervals import EvalResult
from atod_jax.learner import init_state
from atod_jax.optim import OptimConfig, make_optimizer
from atod_jax.report import evaluation_table
from atod_jax.types import TrainState


def restore_params(cfg: ConfigDict, checkpoint: Path, student: Model) -> Any:
    """Student parameters of a training run's latest (or a given) step.

    Args:
      checkpoint: a workdir, its `checkpoints` folder, or one step inside it.
    """
    folder = checkpoint / "checkpoints" if (checkpoint / "checkpoints").is_dir() else checkpoint
    step = int(folder.name) if folder.name.isdigit() else None
    checkpointer = Checkpointer(folder.parent if step is not None else folder, read_only=True)
    state: TrainState = init_state(student.params, make_optimizer(section(OptimConfig, cfg.optim)))
    step = checkpointer.latest_step() if step is None else step
    if step is None:
        raise FileNotFoundError(f"--checkpoint={checkpoint}: no saved step there")
    return checkpointer.restore(step, jax.tree.map(_abstract, state)).params


def _abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def load_policy(cfg: ConfigDict, checkpoint: str, mesh: Mesh) -> Model:
    """The student with the weights of a checkpoint; `evaluate` says what that can be."""
    path = Path(checkpoint)
    is_hf = (path / "config.json").is_file() or not path.exists()
    if checkpoint and is_hf:
        cfg.student.path, cfg.student.fresh.hidden_size = checkpoint, 0
    model = assembly.load_student(cfg, mesh)
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
    mesh = assembly.mesh_of(cfg)
    with jax.set_mesh(mesh):
        model = load_policy(cfg, checkpoint, mesh)
        env = assembly.environment(cfg, model.tokenizer)
        tasks = env.tasks(cfg.eval.split, cfg.eval.final_tasks)
        results = {}
        for temperature in cfg.eval.temperatures:
            evaluator = Evaluator(cfg, model, mesh, env, temperature=temperature)
            results[f"T={temperature}"], _ = evaluator.run(model.params, tasks)
        env.pool.close()
    table = evaluation_table(results)
    print(f"{cfg.env.name}, {cfg.eval.split}: {len(tasks)} tasks, seed {cfg.seed}\n\n{table}")
    if workdir:
        out = Path(workdir)
        out.mkdir(parents=True, exist_ok=True)
        (out / "evaluation.md").write_text(table + "\n")
        payload = {name: result.to_json() for name, result in results.items()}
        (out / "evaluation.json").write_text(json.dumps(payload))
    return results


if __name__ == "__main__":
    cli.run(main, workdir_required=False)
