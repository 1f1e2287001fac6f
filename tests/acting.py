"""Sampling for tests: some prompts in, their actions out."""

from collections.abc import Sequence

import jax
import numpy as np

from atod_jax.device.policy import Policy
from atod_jax.records import Action, Request


def act(policy: Policy, weights, requests: Sequence[Request], *, key) -> dict[int, Action]:
    """The actions by row, all submitted at the start."""
    sampler = policy.sampler(weights, key)
    sampler.submit(requests)
    actions: dict[int, Action] = {}
    while (some := sampler.advance(len(requests) - len(actions))) is not None:
        actions |= dict(some)
    return actions


def requests_of(prompts: Sequence[np.ndarray], *, turn: int = 0, rows=None) -> list[Request]:
    """One per prompt, rows from 0 on where none are given."""
    return [Request(row, turn, p) for row, p in zip(rows or range(len(prompts)), prompts)]


def act_in_order(policy: Policy, params, prompts, *, rows=None, key=None) -> list[Action]:
    """One action per prompt, with parameters as they are trained."""
    asked = requests_of(prompts, rows=rows)
    weights = jax.jit(policy.model.serve)(params)
    actions = act(policy, weights, asked, key=jax.random.key(0) if key is None else key)
    return [actions[request.row] for request in asked]
