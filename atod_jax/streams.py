"""Where every random number comes from: a pure function of (seed, stream, step).

No generator is carried along, so a resumed run draws exactly what an undisturbed one draws.
"""

import enum

import jax
import numpy as np


class Stream(enum.IntEnum):
    """One number per independent use; never renumber, it would change every run."""

    init = 0
    tasks = 1
    rollout = 2
    packing = 3
    evaluation = 4
    demonstrations = 5
    adapters = 6


def key(seed: int, stream: Stream, step: int = 0) -> jax.Array:
    """A JAX key for one step of one stream."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), int(stream)), step)


def rng(seed: int, stream: Stream, *counters: int) -> np.random.Generator:
    """A NumPy generator for host-side draws of one stream at the given counters."""
    return np.random.default_rng((seed, int(stream), *counters))
