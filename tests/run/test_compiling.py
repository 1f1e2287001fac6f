"""Who is told what is compiled."""

import time

import jax
import jax.numpy as jnp

from atod_jax.run import compiling


def test_slow_programs_are_named_and_all_are_timed(monkeypatch):
    monkeypatch.setattr(compiling, "QUIET_SECONDS", 0.0)
    lines = []

    def gradient(x):
        for n in range(50):  # of some size
            x = jnp.sin(x) @ x + n
        return x

    def other(x):
        return 2 * x

    with compiling.Compiling(3, lines.append) as watch:
        x = jnp.ones((3, 3))
        jax.jit(gradient).lower(x)  # lowered before it is called, as programs side by side are
        compiled = time.perf_counter()
        jax.block_until_ready(jax.jit(gradient)(x))
        compiled = time.perf_counter() - compiled
        jax.jit(other)(x)
        assert 0 < watch.take_seconds() < 2 * compiled + 1
        assert watch.take_seconds() == 0
    assert lines[0] == "compiling 1 of 3: gradient"
    assert not any("other" in line for line in lines)
