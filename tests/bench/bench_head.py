"""The fused head beside full logits: memory and time, one core, in one run.

    pytest -m bench -s tests/bench/bench_head.py

float32, D = 512, V = 151,936, student and teacher: log-probabilities, entropy and exact KL, values
and gradients. Prints ratios; the targets stand beside them.
"""

import functools
import statistics
import time

import jax
import jax.numpy as jnp
import pytest
from alone import run_alone

from atod_jax.core.fused import HeadConfig, TeacherHead, head_loss
from atod_jax.types import TokenStats

D, V = 512, 151_936


@pytest.mark.bench
def test_memory_and_time_of_the_head():
    print(run_alone(__file__))


def main() -> None:
    """Compiles, measures and prints."""
    naive = {n: compiled(n, naive_loss) for n in (1024, 8192)}
    fused = {n: compiled(n, fused_loss()) for n in (1024, 8192, 16384)}
    gigabytes = {
        name: {n: c.memory_analysis().temp_size_in_bytes / 1e9 for n, c in some.items()}
        for name, some in (("naive", naive), ("fused", fused))
    }
    print(f"\ntemporaries at 8,192 tokens: naive {gigabytes['naive'][8192]:.2f} GB, "
          f"fused {gigabytes['fused'][8192]:.3f} GB (target 0.5), "
          f"at 16,384 tokens {gigabytes['fused'][16384]:.3f} GB")  # fmt: skip
    fifth = compiled(1024, fused_loss(capacity=256), share=0.2)
    runs = {"naive": naive[1024], "fused": fused[1024], "fused, 20 % actions": fifth}
    seconds = {name: [] for name in runs}
    for _ in range(4):  # interleaved, so that a noisy neighbour meets all of them
        for name, program in runs.items():
            seconds[name].append(cpu_seconds(program))
    base = statistics.median(seconds["naive"][1:])
    for name, target in (("naive", 1.0), ("fused", 0.85), ("fused, 20 % actions", 0.25)):
        value = statistics.median(seconds[name][1:])
        print(f"{name:22} {value:6.2f} CPU-s  {value / base:5.2f} of naive (target {target})")


def objective(stats, weight):
    """A sum in which every statistic counts."""
    total = jnp.sum(weight * stats.logp) - 0.01 * jnp.sum(stats.entropy)
    return total + jnp.sum(stats.reverse_kl) + jnp.sum(stats.teacher_logp), None


def naive_loss(hidden, head, weight, *, action, action_mask, teacher):
    """From the full logits of both models."""
    logp, t_logp = (
        jax.nn.log_softmax(jnp.einsum("nrd,vd->nrv", *x)) for x in ((hidden, head), teacher)
    )
    p = jnp.exp(logp)
    picked = [jnp.take_along_axis(x, action[..., None], -1)[..., 0] for x in (logp, t_logp)]
    stats = picked[0], -jnp.sum(p * logp, -1), picked[1], jnp.sum(p * (logp - t_logp), -1)
    names = "logp", "entropy", "teacher_logp", "reverse_kl"
    masked = (action_mask * x for x in stats)
    return objective(TokenStats(**dict(zip(names, masked, strict=True))), weight)


def fused_loss(capacity=None):
    """The package's head."""
    return functools.partial(head_loss, per_token=objective, cfg=HeadConfig(), capacity=capacity)


def compiled(tokens, loss, share=1.0):
    """The compiled gradient of a sum over all statistics, with its arguments attached."""
    k = jax.random.split(jax.random.key(0), 5)
    shape = (tokens // 64, 64)
    states = [jax.ShapeDtypeStruct((*shape, D), jnp.float32)] * 2
    action = jax.random.randint(k[0], shape, 0, V)
    mask = jnp.arange(tokens).reshape(shape) < round(share * tokens)
    weight = jax.random.normal(k[1], shape)

    def total(hidden, head, *teacher):
        tokens = {"action": action, "action_mask": mask, "teacher": TeacherHead(*teacher)}
        return loss(hidden, head, weight, **tokens)[0]

    head = jax.ShapeDtypeStruct((V, D), jnp.float32)
    step = jax.jit(jax.value_and_grad(total, (0, 1)))
    program = step.lower(states[0], head, states[1], head).compile()
    program_inputs[program] = [
        0.05**i * jax.random.normal(k[2 + i], s)
        for i, s in enumerate([(*shape, D), (V, D)])
    ] * 2 if tokens <= 1024 else None  # fmt: skip
    return program


program_inputs = {}


def cpu_seconds(program):
    """Process time of one run; one thread, so other load on the machine hardly counts."""
    started = time.process_time()
    jax.block_until_ready(program(*program_inputs[program]))
    return time.process_time() - started


if __name__ == "__main__":
    main()
