"""Folders of runs that nobody has trained."""

import json

import numpy as np

from atod_jax.results.intervals import EvalResult


def result(solved: float, temperature: float, tasks: int, prefix: str) -> EvalResult:
    success = np.arange(tasks) < round(solved * tasks)
    return EvalResult(
        temperature=temperature, task_ids=tuple(f"{prefix}{i}" for i in range(tasks)),
        kinds=("k",) * tasks, success=success[None], turns=np.full((1, tasks), 9),
        score=np.float32(success[None]), valid_rate=0.5,
    )  # fmt: skip


def make_run(
    folder, *, algorithm="atod", seed=0, solved=0.7, steps=30, done=None, tasks=40, prefix="task-",
    temperatures=(1.0,), roles=("start", "final", "teacher"), teacher="household/teacher-mid",
    env="alfworld", own=None, lr=1e-3, every=10,
):  # fmt: skip
    """Writes the folder of a run that may have got only `done` steps far; success grows evenly."""
    done = steps if done is None else done
    config = {
        "algorithm": {"name": algorithm, algorithm: own or {}}, "teacher": {"path": teacher},
        "env": {"name": env}, "eval": {"split": "valid", "curve_temperature": 1.0},
        "optim": {"lr": lr}, "seed": seed, "total_steps": steps, "student": {},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run_config.json").write_text(json.dumps(config))
    (folder / "evaluations").mkdir()
    rates = {"start": 0.05, "final": solved, "teacher": 0.5}
    for role in roles:
        for temperature in temperatures:
            found = result(rates[role], temperature, tasks, prefix).to_json()
            path = folder / "evaluations" / f"{role}-T{temperature:g}.json"
            path.write_text(json.dumps(found))
    lines = []
    for step in range(done + 1):
        if every and step % every == 0:
            value = solved * step / steps
            lines.append({"step": step, "eval/success": value, "eval/success_low": value / 2,
                          "eval/success_high": min(1, 2 * value)})  # fmt: skip
        if step < done:
            lines.append({"step": step, "loss/total": 1.0, "kl/verb": 30.0 - step,
                          "rollout/mixed_groups": None, "rollout/valid_actions": 0.9,
                          "rollout/success": solved})  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return str(folder)
