"""One whole update of a small Qwen3 with the full vocabulary, beside Tunix's.

    [ATOD_PEER_PYTHON=V/bin/python] pytest -m bench -s tests/bench/bench_update.py

8 layers, D = 512, V = 151,936, tied, float32, remat, one core: gradient of the objective and AdamW.
Every position but the first of a row carries loss, as in the peer's step (`peer_tunix.py`). All
rows go through in one micro-batch, so that neither side gains from accumulation. Ours is timed
before and after the peer.
"""

import json
import os
import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from alone import run_alone

from atod_jax.core.fused import HeadConfig
from atod_jax.core.losses import LossConfig
from atod_jax.device.learner import Piece, init_state, make_update
from atod_jax.device.optim import OptimConfig, make_learning_rate, make_optimizer
from atod_jax.device.scoring import ScoreConfig
from atod_jax.models import ModelConfig, build
from atod_jax.types import Rows, Signal

V, HERE = 151_936, Path(__file__).resolve()


def measure(python, script, *arguments):
    """The JSON line that a script prints."""
    return json.loads(run_alone(script, *arguments, python=python).splitlines()[-1])


@pytest.mark.bench
def test_memory_and_time_of_an_update():
    peer = os.environ.get("ATOD_PEER_PYTHON")
    large, small = ("16", "512", "--compile-only"), ("4", "512")
    ours = measure(sys.executable, HERE, *large), measure(sys.executable, HERE, *small)
    print(f"\n16 x 512: temporaries {ours[0]['temp_gb']:.2f} GB (target 3)")
    print(f" 4 x 512: {ours[1]['cpu_s']:.2f} CPU-s, temporaries {ours[1]['temp_gb']:.2f} GB")
    if peer:
        script = str(HERE.with_name("peer_tunix.py"))
        theirs = measure(peer, script, *large), measure(peer, script, *small)
        again = measure(sys.executable, HERE, *small)["cpu_s"]
        ratio = statistics.fmean([ours[1]["cpu_s"], again]) / theirs[1]["cpu_s"]
        print(f"peer: {theirs[0]['temp_gb']:.2f} GB; {theirs[1]['cpu_s']:.2f} CPU-s, "
              f"{theirs[1]['temp_gb']:.2f} GB; ours / peer {ratio:.2f} (target 1.0), "
              f"ours again {again:.2f}")  # fmt: skip


def main(rows: int, tokens: int, *, run: bool) -> None:
    """Compiles the update, runs it if asked, prints the JSON line."""
    config = ModelConfig(
        vocab_size=V, hidden_size=512, num_layers=8, num_heads=8, num_kv_heads=4, head_dim=64,
        intermediate_size=1536, rope_theta=1e6, rms_eps=1e-6, tie_embeddings=True, remat="full",
    )  # fmt: skip
    model, tx = build(config), make_optimizer(OptimConfig())
    update = make_update(
        model, tx, learning_rate=make_learning_rate(OptimConfig(), 10), loss=LossConfig(),
        score=ScoreConfig(micro_rows=rows, head=HeadConfig()),
    )  # fmt: skip
    state = jax.eval_shape(lambda k: init_state(model, model.init(k), tx=tx), jax.random.key(0))
    piece = make_piece(rows, tokens)
    program = jax.jit(update, donate_argnums=0).lower(state, piece).compile()
    result = {"temp_gb": program.memory_analysis().temp_size_in_bytes / 1e9}
    if run:
        state, seconds = init_state(model, model.init(jax.random.key(0)), tx=tx), []
        for _ in range(4):
            started = time.process_time()
            state, _ = jax.block_until_ready(program(state, piece))
            seconds.append(time.process_time() - started)
        result["cpu_s"] = statistics.median(seconds[1:])
    print(json.dumps(result))


def make_piece(rows: int, tokens: int):
    """A prompt of one column and an action of the rest."""
    rng = np.random.default_rng(0)
    shape = (rows, tokens - 1)
    batch = Rows(
        prompt=rng.integers(5, V, (rows, 1)), prompt_length=np.ones(rows, np.int32),
        action=rng.integers(5, V, shape), action_mask=np.ones(shape, bool),
        sampler_logp=np.zeros(shape, np.float32), traj=np.arange(rows),
        turn=np.zeros(rows, np.int32), action_valid=np.ones(rows, bool),
        reward=np.zeros(rows, np.float32), anchor=np.zeros(rows, np.int32),
    )  # fmt: skip
    signal = Signal(
        advantage=rng.normal(size=shape).astype(np.float32), ce_weight=np.zeros(shape, np.float32),
        old_logp=np.full(shape, -12.0, np.float32), diagnostics={},
    )  # fmt: skip
    share = np.full(shape, 1 / np.prod(shape), np.float32)
    return jax.tree.map(jnp.asarray, Piece(batch, signal, share))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), run="--compile-only" not in sys.argv)
