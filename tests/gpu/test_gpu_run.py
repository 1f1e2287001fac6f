"""A whole step and a whole run on a card: near a CPU's numbers, and to the report."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "tests" / "run"))

pytestmark = pytest.mark.gpu
SMOKE = [
    "--config=household:smoke",
    "--config.student.dtype=bfloat16",
    "--config.teacher.dtype=bfloat16",
]


def python(*words: str) -> str:
    """What a program of its own says."""
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=REPO, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_training_step_is_near_that_of_a_cpu():
    from test_golden_step import GOLDEN, one_step

    numbers = one_step()
    far = {
        name: (value, numbers[name])
        for name, value in GOLDEN.items()
        if numbers[name] != pytest.approx(value, rel=2e-2, abs=1e-3)
    }
    assert not far, f"(name: CPU, here) {far}"


def test_a_run_in_bfloat16_ends_with_a_report(tmp_path):
    python("atod_jax.train", *SMOKE, f"--workdir={tmp_path}")
    assert (tmp_path / "report.md").is_file()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [r for r in records if "loss/total" in r]
    assert [r["step"] for r in steps] == [0, 1, 2]
    for r in steps:  # the sampler says what the scorer says, but for bfloat16
        assert r["student/sampler_gap"] < 0.05
        assert r["batch/useful_tokens"] > 0


def test_the_bench_measures_what_it_compiles(tmp_path):
    found = tmp_path / "bench.json"
    python("atod_jax.bench", "--hardware=local", "--only=head_65536,decode_32", f"--json={found}")
    for entry in json.loads(found.read_text()):
        assert 0 < entry["milliseconds"] < 2000
        assert entry["temporary_bytes"] < 20e9
