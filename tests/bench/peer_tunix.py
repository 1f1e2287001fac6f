"""The peer of `bench_update.py`: Tunix's GRPO step on the same random model. Run with its Python.

    python -m venv V && V/bin/pip install google-tunix==0.1.7
    V/bin/python tests/bench/peer_tunix.py ROWS TOKENS [--compile-only]

Prints one JSON line: `temp_gb` of XLA's memory analysis and `cpu_s`, the median of three runs.
"""

import json
import statistics
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.models.qwen3 import model as qwen3
from tunix.rl import algo_core, common

ROWS, TOKENS = int(sys.argv[1]), int(sys.argv[2])
V = 151_936
CONFIG = qwen3.ModelConfig(
    num_layers=8, vocab_size=V, embed_dim=512, hidden_dim=1536, num_heads=8, head_dim=64,
    num_kv_heads=4, rope_theta=1_000_000, norm_eps=1e-6, use_tied_embedding=True,
    dtype=jnp.float32, param_dtype=jnp.float32, remat_config=qwen3.RematConfig.DECODER,
)  # fmt: skip
GRPO = types.SimpleNamespace(
    beta=0.04, epsilon=0.2, epsilon_high=0.2, loss_algo="grpo", loss_agg_mode="token-mean",
    temperature=1.0, kl_loss_mode="kl", kl_clamp_value=None, epsilon_c=None,
    force_compute_kl=False,
)  # fmt: skip


def example():
    """A prompt of one column and a completion of the rest, every position carrying loss."""
    rng = np.random.default_rng(0)
    prompt = jnp.asarray(rng.integers(5, V, (ROWS, 1)))
    completion = jnp.asarray(rng.integers(5, V, (ROWS, TOKENS - 1)))
    old = jnp.full(completion.shape, -12.0)
    return common.TrainExample(
        prompt_ids=prompt, prompt_mask=prompt != 2, completion_ids=completion,
        completion_mask=jnp.ones(completion.shape), ref_per_token_logps=old,
        advantages=jnp.asarray(rng.normal(size=ROWS), jnp.float32), old_per_token_logps=old,
    )  # fmt: skip


def main():
    """One compiled GRPO step: loss, gradients, AdamW."""
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        model = qwen3.Qwen3(CONFIG, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.adamw(1e-6), wrt=nnx.Param)
        graph, state = nnx.split((model, optimizer))

        def loss(model, batch):
            return algo_core.grpo_loss_fn(model, batch, GRPO, 2, 1)[:2]

        def step(state, batch):
            model, optimizer = nnx.merge(graph, state)
            (value, _), grads = nnx.value_and_grad(loss, has_aux=True)(model, batch)
            optimizer.update(model, grads)
            return nnx.state((model, optimizer)), value, optax.global_norm(grads)

        batch = example()
        program = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
        result = {"temp_gb": program.memory_analysis().temp_size_in_bytes / 1e9}
        if "--compile-only" not in sys.argv:
            seconds = []
            for _ in range(4):
                started = time.process_time()
                state, *_ = jax.block_until_ready(program(state, batch))
                seconds.append(time.process_time() - started)
            result["cpu_s"] = statistics.median(seconds[1:])
    print(json.dumps(result))


main()
