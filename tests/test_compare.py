"""The comparison page: seeds pooled, runs grouped, unfinished runs refused."""

import json

import numpy as np
import pytest

from atod_jax.compare import compare, read_run
from atod_jax.results.intervals import EvalResult


def make_run(folder, *, algorithm, seed, solved, tasks=40):
    rng = np.random.default_rng(seed)
    (folder / "evaluations").mkdir(parents=True)
    config = {
        "algorithm": {"name": algorithm}, "teacher": {"path": "household/teacher-mid"},
        "seed": seed, "total_steps": 30,
    }  # fmt: skip
    (folder / "run_config.json").write_text(json.dumps(config))
    for role, rate in (("start", 0.05), ("final", solved), ("teacher", 0.5)):
        success = np.arange(tasks) < round(rate * tasks)
        result = EvalResult(
            temperature=1.0, task_ids=tuple(map(str, range(tasks))), kinds=("k",) * tasks,
            success=success[None], turns=np.full((1, tasks), 9),
            score=np.float32(success[None]), valid_rate=0.5,
        )  # fmt: skip
        (folder / "evaluations" / f"{role}-T1.json").write_text(json.dumps(result.to_json()))
    lines = []
    for step in range(31):
        if step % 10 == 0:
            value = solved * step / 30
            lines.append({"step": step, "eval/success": value, "eval/success_low": value / 2,
                          "eval/success_high": min(1, 2 * value)})  # fmt: skip
        if step < 30:
            lines.append({"step": step, "loss/total": rng.normal(), "kl/verb": 30.0 - step,
                          "rollout/mixed_groups": 0.5, "rollout/valid_actions": 0.9})  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return read_run(folder)


def test_seeds_share_a_line_and_numbers_are_those_of_the_runs(tmp_path):
    runs = [
        make_run(tmp_path / "a", algorithm="atod", seed=0, solved=0.75),
        make_run(tmp_path / "b", algorithm="atod", seed=1, solved=0.65),
        make_run(tmp_path / "c", algorithm="opd", seed=0, solved=0.4),
    ]
    text = compare(runs, tmp_path / "out").read_text()
    (atod,) = [x for x in text.splitlines() if x.startswith("| atod") and "75.0 / 65.0" in x]
    assert "+20.0 [" in atod  # (0.75 + 0.65) / 2 - 0.5
    assert any(x.startswith("| opd") and "-10.0 [" in x for x in text.splitlines())
    assert any("kl/verb | 25.50 | 15.50 | 5.50" in x for x in text.splitlines())
    assert any(x.startswith("| atod | teacher-mid | 0 | 23 | 47 | 70 |") for x in text.splitlines())
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 5000


def test_unfinished_runs_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished run"):
        read_run(tmp_path)
