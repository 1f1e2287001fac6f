"""Six turns played in three slots, and the states that reading them whole gives."""

import jax
import jax.numpy as jnp
import numpy as np
from tiny_models import by_turn, each_alone, make_turns, packed

from atod_jax.models.serving import commit, empty_cache, enter

SIZES, PROMPTS = [14, 6, 9, 11, 5, 12], [8, 1, 5, 7, 2, 8]
TURNS = make_turns(SIZES)
TURNS[5][:8] = TURNS[0][:8]  # two turns with one prompt, which is read once
READ = [[0, 1], [None, 3], [2, 4]]  # turns whose prompts share a line
SLOTS, COLUMNS, CHUNK = 3, 16, 3
# Which turns enter which slots, and how many tokens every slot is then fed.
ROUNDS = [({0: 0, 2: 1}, 3), ({1: 2}, 1), ({}, 2), ({2: 4}, 3), ({1: 5, 0: 3}, 3), ({}, 1)]


def served(model, weights):
    """Number of a turn -> the states of its last prompt token and of all tokens it was fed."""
    tokens, lengths = packed([t[:n] for t, n in zip(TURNS, PROMPTS)], READ, 10)
    last, prompts = jax.jit(model.prefill)(weights, tokens, lengths)
    starts = np.cumsum(lengths, axis=1) - lengths
    place = {n: (l, m) for l, line in enumerate(READ) for m, n in enumerate(line)} | {5: (0, 0)}
    cache = empty_cache(model.config, SLOTS, COLUMNS, recent=CHUNK)
    states, held = {}, [None] * SLOTS
    step, into, moved = jax.jit(model.step), jax.jit(enter), jax.jit(commit)
    for entering, steps in ROUNDS:
        where = [place[turn] for turn in entering.values()]
        cache = into(
            cache,
            prompts,
            slot=jnp.array([*entering, SLOTS], jnp.int32),  # the last one goes nowhere
            line=jnp.array([l for l, _ in where] + [1], jnp.int32),
            start=jnp.array([starts[p] for p in where] + [3], jnp.int32),
            length=jnp.array([lengths[p] for p in where] + [7], jnp.int32),
        )
        for slot, turn in entering.items():
            held[slot] = turn
            states[turn] = [last[place[turn]]]
        for _ in range(steps):
            fed = [next_token(turn, states) for turn in held]
            hidden, cache = step(weights, jnp.array(fed, jnp.int32), cache)
            for slot, turn in enumerate(held):
                if turn is not None:
                    states[turn].append(hidden[slot])
        cache = moved(cache)
        assert int(cache.written) == 0
    return states


def next_token(turn, states):
    """What a slot is fed; anything if it has no turn or the turn is over."""
    at = 0 if turn is None else PROMPTS[turn] + len(states[turn]) - 1
    return 7 if turn is None or at >= SIZES[turn] else TURNS[turn][at]


def whole(model, params):
    """The same of turns that are read, each alone in its line."""
    lines = each_alone(len(TURNS))
    tokens, lengths = packed(TURNS, lines, max(SIZES))
    states = by_turn(jax.jit(model.hidden)(params, tokens, lengths), lines, lengths)
    return {turn: x[PROMPTS[turn] - 1 :] for turn, x in states.items()}


def pairs(model, params, weights):
    """Number of a turn -> its (played, whole) states."""
    want, result = whole(model, params), {}
    for turn, states in served(model, weights).items():
        count = min(len(states), len(want[turn]))
        result[turn] = np.stack(states[:count]), want[turn][:count]
    return result
