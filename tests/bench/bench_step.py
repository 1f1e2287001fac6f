"""Where a training step of the household setting spends its time. Prints, asserts nothing.

pytest -m bench -s tests/bench/bench_step.py
"""

import json
import os
import subprocess
import sys

import pytest

COMMAND = [
    sys.executable, "-m", "atod_jax.train", "--config=configs/household.py:teacher=good,steps=16",
    "--config.eval.every=0", "--config.eval.tasks=16", "--config.eval.final_tasks=16",
]  # fmt: skip


@pytest.mark.bench
def test_share_of_each_phase(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}  # one device
    subprocess.run([*COMMAND, f"--workdir={tmp_path}"], check=True, env=environment)
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [r for r in lines if "seconds/step" in r][4:]  # the first ones compile
    total = sum(r["seconds/step"] for r in steps)
    rows = sum(r["rollout/rows"] for r in steps)
    print(f"\n{total / len(steps):.2f} s per step, {rows / len(steps):.0f} rows per step")
    for phase in ("rollout", "pack", "score", "update"):
        share = sum(r[f"seconds/{phase}"] for r in steps) / total
        print(f"{phase:8} {100 * share:5.1f} %")
