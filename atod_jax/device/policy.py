"""The host object that samples: prompts of any length in, few compiled shapes, actions out."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array

from atod_jax.device.sampling import Generation, SamplingConfig, sample
from atod_jax.models import LanguageModel
from atod_jax.sharding import batch_sharding, local_shards, to_global, to_host, to_local

ROW_UNIT = 8  # the smallest row bucket


class Action(NamedTuple):
    """One sampled action on the host."""

    tokens: np.ndarray  # i32[a], the end token included when it was produced
    logp: np.ndarray  # f32[a]


@functools.cache
def _compiled(model: LanguageModel, cfg: SamplingConfig, mesh: Mesh | None) -> Any:
    """The jitted loop of `cfg.program`; policies that differ in host settings share it."""

    def run(params, prompt, length, key, row_id, temperature):
        return sample(
            model,
            params,
            prompt=prompt,
            prompt_length=length,
            key=key,
            row_id=row_id,
            temperature=temperature,
            cfg=cfg,
        )

    return jax.jit(run, out_shardings=None if mesh is None else batch_sharding(mesh))


class Policy:
    """Turns lists of prompts of any length into few compiled shapes, and back into actions."""

    def __init__(self, model: LanguageModel, cfg: SamplingConfig, mesh: Mesh | None = None):
        self.model, self.cfg, self.mesh = model, cfg, mesh
        self._unit = math.lcm(ROW_UNIT, local_shards(mesh)) if mesh else ROW_UNIT
        self._compiled = _compiled(model, cfg.program, mesh)
        self._temperature = np.float32(cfg.temperature)

    def act(
        self,
        params: Any,
        prompts: Sequence[np.ndarray],
        row_ids: Sequence[int],
        *,
        key: Array,
    ) -> list[Action]:
        """One action per prompt.

        With several processes every one of them must call this the same number of times, with its
        own prompts (possibly none) and row ids that are unique among all of them.

        Raises:
          ValueError: a prompt is empty or longer than the largest bucket, there are more than
            max_rows prompts, or not one row id per prompt.
        """
        rows, columns = self._bucket(prompts, row_ids)
        if rows == 0:
            return []
        tokens = np.full((rows, columns), self.cfg.pad_id, np.int32)
        length, ids = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
        for i, prompt in enumerate(prompts):
            tokens[i, columns - len(prompt) :] = prompt
            length[i] = len(prompt)
        ids[: len(prompts)] = row_ids
        host = (tokens, length, ids)
        out = self._sample(params, host, key)
        out_tokens, logp, count = (to_local(x) for x in (out.tokens, out.logp, out.length))
        return [Action(out_tokens[i, :n], logp[i, :n]) for i, n in enumerate(count[: len(prompts)])]

    def _sample(self, params: Any, host: tuple[np.ndarray, ...], key: Array) -> Generation:
        if self.mesh is None:
            return self._compiled(params, *host[:2], key, host[2], self._temperature)
        # keys are made where the student trains, which may be on other devices
        numbers: Any = to_host(jax.random.key_data(key))
        with jax.set_mesh(self.mesh):
            tokens, length, ids = to_global(host, self.mesh)
            key = jax.random.wrap_key_data(numbers)
            return self._compiled(params, tokens, length, key, ids, self._temperature)

    def _bucket(self, prompts: Sequence[np.ndarray], row_ids: Sequence[int]) -> tuple[int, int]:
        """The padded (rows, columns), agreed upon by all processes; (0, 0) without any prompt."""
        longest = max((len(p) for p in prompts), default=0)
        if any(len(p) == 0 for p in prompts):
            raise ValueError("an empty prompt: there is nothing to predict the first token from")
        if len(row_ids) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(row_ids)} row ids")
        if longest > self.cfg.prompt_buckets[-1]:
            raise ValueError(
                f"a prompt has {longest} tokens, the largest of {self.cfg.prompt_buckets=} is "
                f"{self.cfg.prompt_buckets[-1]}; add a bucket or shorten the history"
            )
        if len(prompts) > self.cfg.max_rows:
            raise ValueError(f"{len(prompts)} prompts in one call, {self.cfg.max_rows=}; raise it")
        rows = row_bucket(len(prompts), unit=self._unit, most=self.cfg.max_rows)
        columns = next(b for b in self.cfg.prompt_buckets if b >= longest) if prompts else 0
        if jax.process_count() > 1:
            rows, columns = multihost_utils.process_allgather(np.array([rows, columns])).max(0)
        return int(rows), int(columns)


def row_bucket(rows: int, *, unit: int, most: int) -> int:
    """The smallest of 0, unit, 4 unit, 16 unit, ..., and `most` (rounded up to units) that fits:
    a padded row costs little, a compiled shape seconds."""
    if rows == 0:
        return 0
    power = unit * 4 ** max(0, math.ceil(math.log2(rows / unit) / 2))
    return min(power, -(-most // unit) * unit)
