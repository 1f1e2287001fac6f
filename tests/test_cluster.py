"""Several processes as one run: what they tell each other, training on 1, 2 and 4, and a death."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from atod_jax import cluster

REPO = Path(__file__).resolve().parents[1]
PROGRAM = """
import os, signal, sys
import jax, numpy as np
from atod_jax import cluster
address, count, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
dies = sys.argv[4] == "dies"
cluster.start(coordinator=address, num_processes=count, process_id=number)
with cluster.leaving_together():
    share = cluster.share_of(5)
    mine = [{"n": n, "x": np.full(n, n)} for n in range(5)[share]]
    everything = cluster.gather(mine)
    assert [e["n"] for e in everything] == [0, 1, 2, 3, 4]
    assert all((e["x"] == e["n"]).all() and len(e["x"]) == e["n"] for e in everything)
    assert cluster.first_says(number + 7) == 7
    assert cluster.is_first() == (number == 0)
    if dies and number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if dies:
        cluster.gather([1])
print("done", flush=True)
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(command, count, *, devices=1):
    """`count` processes of a command that takes the address, the count and the number last."""
    address = f"127.0.0.1:{free_port()}"
    flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "XLA_FLAGS": flags,
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }
    return [
        subprocess.Popen(
            [sys.executable, *command(address, count, k)],
            cwd=REPO,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for k in range(count)
    ]


def talk(dies):
    return lambda address, count, k: ["-c", PROGRAM, address, str(count), str(k), dies]


def test_processes_tell_each_other_what_they_have():
    for process in start(talk("lives"), 3):
        out, err = process.communicate(timeout=120)
        assert (process.returncode, "done" in out) == (0, True), err[-2000:]


def test_the_death_of_one_ends_the_others_with_a_message():
    began = time.monotonic()
    processes = start(talk("dies"), 3)
    errors = [process.communicate(timeout=240)[1] for process in processes]
    assert [p.returncode != 0 for p in processes] == [True] * 3
    assert processes[1].returncode == -signal.SIGKILL
    for k in (0, 2):
        assert "lost the others" in errors[k] or "another task died" in errors[k], errors[k]
    assert time.monotonic() - began < 5 * cluster.HEARTBEAT_SECONDS


def test_alone_everything_is_as_it_was():
    cluster.start()
    assert cluster.share_of(7) == slice(0, 7)
    assert cluster.gather([1, 2]) == [1, 2]
    assert cluster.first_says("x") == "x"
    assert cluster.is_first()


def test_half_an_address_is_refused():
    with pytest.raises(ValueError, match="give all three"):
        cluster.start(coordinator="localhost:1234")


# ------------------------------------------------------------------------------- training


# The teacher on devices of its own, the student split over processes and playing unsplit.
APART = ("--config.teacher.devices=2", "--config.mesh.data=1", "--config.mesh.fsdp=2",
         "--config.sampling.mesh.data=2", "--config.algorithm.atod.token_signal=exact")  # fmt: skip


def train(workdir, count, *, steps, options=()):
    """A run on 4 devices in `count` processes; its metrics without times."""

    def command(address, count, k):
        return [
            *("-m", "atod_jax.train", "--config=configs/household.py:smoke"),
            *(f"--workdir={workdir}", f"--config.total_steps={steps}", "--config.save_every=1"),
            *("--config.eval.temperatures=(1.0,)", "--config.optim.schedule=constant"),
            *options,
            *(f"--coordinator={address}", f"--num_processes={count}", f"--process_id={k}"),
        ]

    for process in start(command, count, devices=4 // count):
        _, err = process.communicate(timeout=1500)
        assert process.returncode == 0, err[-3000:]
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    quiet = ("seconds/", "env/", "rollout/kept_steps", "student/sampler_gap")
    return [{k: v for k, v in line.items() if not k.startswith(quiet)} for line in lines]


def assert_alike(ours, theirs):
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for one, two in zip(ours, theirs, strict=True):
        assert one.keys() == two.keys()
        for name, value in one.items():
            np.testing.assert_allclose(value, two[name], rtol=2e-4, atol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_train_like_one(tmp_path, count):
    assert_alike(train(tmp_path / "many", count, steps=3), train(tmp_path / "one", 1, steps=3))


@pytest.mark.slow
def test_processes_share_a_teacher_on_devices_of_its_own(tmp_path):
    runs = [train(tmp_path / str(n), n, steps=2, options=APART) for n in (2, 1)]
    assert_alike(*runs)


@pytest.mark.slow
def test_a_run_is_resumed_on_another_number_of_processes(tmp_path):
    """One step on 2 processes, the killed rest on 4: the numbers of one process throughout."""
    whole = train(tmp_path / "whole", 1, steps=3)
    run = tmp_path / "run"
    train(run, 2, steps=3)
    checkpoints = sorted((run / "checkpoints").glob("[0-9]*"), key=lambda p: int(p.name))
    for folder in checkpoints[1:]:  # as if the run had been killed after its first checkpoint
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        folder.rmdir()
    first = int(checkpoints[0].name)
    assert 0 < first < 3
    for name in ("final-T1.json",):
        (run / "evaluations" / name).unlink()
    assert_alike(train(run, 4, steps=3), whole)
