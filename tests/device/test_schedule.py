"""The sampler's schedule, without a model: how much of what is computed is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atod_jax.device.policy import Policy
from atod_jax.device.sampling import SamplingConfig
from atod_jax.device.slots import Entry, Programs
from atod_jax.envs.base import Observation, Projection, StepResult
from atod_jax.envs.pool import EnvPool
from atod_jax.episodes.rollout import collect
from atod_jax.models import ModelConfig, build
from atod_jax.records import Request, RolloutPlan, Task

TURNS, EPISODES = 25, 128
MODEL = build(
    ModelConfig(
        vocab_size=8, hidden_size=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8,
        intermediate_size=8, rope_theta=1e4, rms_eps=1e-6, tie_embeddings=True,
    )
)  # fmt: skip


class Endless:
    """An environment that ends with the turns of the plan."""

    def reset(self, task):
        return Observation("")

    def step(self, command):
        return StepResult(Observation(""), reward=0.0, done=False, won=False)

    def close(self):
        pass


class Prompts:
    """A renderer of prompts of given lengths."""

    longest = None

    def __init__(self, rng):
        self.rng = rng

    def prompts(self, episodes, contexts=()):
        lengths = np.clip(self.rng.normal(454, 130, len(episodes)), 250, 973).astype(int)
        return [self.rng.integers(1, 1000, n) for n in lengths]

    def fits(self, prompt):
        return True

    def response(self, ids):
        return str(len(ids))

    def project(self, response, commands):
        return Projection(response, True)


class Device:
    """What the compiled programs do, as far as lengths tell."""

    def __init__(self, lengths, chunk):
        self.lengths, self.chunk = lengths, chunk  # [turns, episodes]
        self.rows, self.read, self.prompts = [], 0, 0
        self.programs = Programs(self.empty, self.prefill, self.fill, self.decode, self.move)

    def empty(self, rows, columns):
        return np.zeros((rows, 2), np.int32)  # drawn, left

    def prefill(self, weights, tokens, lengths):
        self.read += tokens.size
        self.prompts += lengths.sum()
        return None, None

    def fill(self, slots, prompts, hidden, table, key):
        for entry in map(Entry._make, table):
            if entry.slot < len(slots):
                assert slots[entry.slot, 1] == 0
                slots[entry.slot] = 0, self.lengths[entry.turn, entry.row]
        return slots

    def decode(self, weights, slots, temperature):
        drawn, left = slots.T
        fresh = (drawn == 0) & (left > 0)
        steps = min(self.chunk, (left - fresh).max())
        slots = slots + np.minimum(left, steps + fresh)[:, None] * [1, -1]
        self.rows.append(len(slots))
        numbers = np.stack([slots[:, 0], slots[:, 1] > 0, np.full(len(slots), steps)], axis=1)
        tokens = np.zeros((len(slots), 2 * self.chunk + 2))
        return slots, jnp.asarray(np.concatenate([tokens, numbers], axis=1), jnp.int32)

    def move(self, slots, source, columns):
        return slots[source]


@pytest.mark.parametrize("slots", [128, 64])
def test_four_fifths_of_what_is_computed_are_kept(slots):
    """Lengths as on real games: 99 tokens on average, 512 at most."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.gamma(1.6, 62, (TURNS, EPISODES)), 8, 512).astype(int)
    cfg = SamplingConfig(
        max_new_tokens=512, prompt_buckets=(512, 1024), slots=slots, eos_ids=(1,), pad_id=0
    )
    device, policy = Device(lengths, cfg.chunk), Policy(MODEL, cfg)
    policy.programs, policy.packs = device.programs, True
    trajectories = collect(
        policy.sampler(None, jax.random.key(0)), Prompts(rng), EnvPool(Endless),
        tasks=[Task(str(n), "", None) for n in range(EPISODES)], group_size=1,
        plan=RolloutPlan(max_turns=TURNS),
    )  # fmt: skip
    played = [[len(turn.action) for turn in t.turns] for t in trajectories]
    np.testing.assert_array_equal(np.transpose(played), lengths)
    counts = policy.take_counts()
    assert counts.kept == lengths.sum() - lengths.size
    assert counts.kept / counts.steps > 0.8
    assert device.prompts / device.read > 0.65


@pytest.mark.parametrize("packs", [True, False])
def test_one_prompt_of_a_group_is_read_once(packs):
    cfg = SamplingConfig(max_new_tokens=99, prompt_buckets=(64,), slots=32, eos_ids=(1,), pad_id=0)
    device, policy = Device(np.full((1, 40), 5), cfg.chunk), Policy(MODEL, cfg)
    policy.programs, policy.packs = device.programs, packs
    sampler = policy.sampler(None, jax.random.key(0))
    groups = [np.full(20 + n, n, np.int32) for n in range(5)]
    sampler.submit([Request(row, 0, groups[row // 9]) for row in range(40)])
    assert len(sampler.advance(40)) == 32
    assert device.prompts == 20 + 21 + 22 + 23
    assert len(sampler.advance(8)) == 8  # the rest of the fourth group, and the fifth
    assert device.prompts == 20 + 21 + 22 + 23 + 23 + 24
    assert sampler.advance(0) is None
