"""Runs a benchmark as a process of its own: one core, one device, none of the tests' settings."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_alone(script: str | Path, *arguments: str, python: str = sys.executable) -> str:
    """What the script prints.

    The tests compile without optimisation for eight devices; a benchmark must do neither.
    """
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    core = max(os.sched_getaffinity(0))
    done = subprocess.run(
        [python, str(script), *arguments],
        check=True, env=environment, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )  # fmt: skip
    return done.stdout
