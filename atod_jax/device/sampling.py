"""Sampling actions: a jitted prefill + decode loop. `policy` feeds it.

The draw of a row depends on its key, its id and its prompt only: not on the other rows of the
batch, not on how far it was padded. Log-probabilities are those of the untruncated policy
softmax(logits / temperature) over the ids that are not forbidden, which is what scoring recomputes.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from atod_jax.core.fused import mask_logits
from atod_jax.models import Cache, LanguageModel
from atod_jax.models.transformer import empty_cache, grow_cache

CDF_BLOCK = 512  # ids per block of the two-level search


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How actions are drawn. Hashable; `program` is the part that a compiled loop depends on."""

    max_new_tokens: int  # R
    prompt_buckets: tuple[int, ...]  # lengths a prompt is padded to, ascending
    max_rows: int  # prompts per call, at most
    eos_ids: tuple[int, ...]  # any of these ends an action and is part of it
    pad_id: int  # fills what follows an action
    temperature: float = 1.0  # 0 = greedy
    top_k: int = 0  # keep the k likeliest ids; 0 = all
    top_p: float = 1.0  # keep the smallest set of ids with this probability; 1 = all
    vocab: int = 0  # ids that can be drawn are below this; 0 = every row of the head
    forbidden: tuple[int, ...] = ()  # ids that cannot be drawn, e.g. padding

    @property
    def program(self) -> "SamplingConfig":
        """Equal for configs that share one compiled loop: what only the host needs is neutral."""
        return dataclasses.replace(self, temperature=1.0, max_rows=1, prompt_buckets=(1,))

    def __post_init__(self):
        if self.max_new_tokens < 1 or self.max_rows < 1:
            raise ValueError(f"{self.max_new_tokens=} and {self.max_rows=} must be at least 1")
        ascending = sorted(set(self.prompt_buckets))
        if not ascending or ascending[0] < 1 or list(self.prompt_buckets) != ascending:
            raise ValueError(f"{self.prompt_buckets=}: give positive lengths in ascending order")
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"{self.temperature=} (>= 0), {self.top_k=} (>= 0), {self.top_p=} (0 < p <= 1)"
            )
        if set(self.eos_ids) & set(self.forbidden):
            raise ValueError(f"{self.forbidden=} holds an end id of {self.eos_ids=}")


class Generation(struct.PyTreeNode, kw_only=True):
    """Sampled actions, padded on the right with pad_id and zeros."""

    tokens: Int[Array, "B R"]
    logp: Float[Array, "B R"]  # nats, of each sampled token
    length: Int[Array, "B"]  # tokens per action, the end token included


# --------------------------------------------------------------------- one distribution


def pick(
    logits: Float[Array, "B V"],
    uniform: Float[Array, "B"],
    *,
    temperature: Float[Array, ""] | float,
    cfg: SamplingConfig,
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """One id per row and its log-probability, from one uniform number per row.

    The temperature is an argument, not a constant: evaluating at two costs one compilation.

    Returns:
      The id, and log softmax(logits / temperature)[id] without forbidden ids (temperature 1 when
      greedy); truncation by top_k and top_p changes the draw, not the log-probability.
    """
    sampled = jnp.asarray(temperature, jnp.float32) > 0
    scale = jnp.where(sampled, temperature, 1.0)
    logits = logits.astype(jnp.float32) / scale
    logits = mask_logits(logits, vocab=cfg.vocab, forbidden=cfg.forbidden)
    top = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.exp(logits - top)
    drawn = inverse_cdf(truncate(weights, top_k=cfg.top_k, top_p=cfg.top_p), uniform)
    token = jnp.where(sampled, drawn, jnp.argmax(logits, axis=-1))
    chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    return token.astype(jnp.int32), chosen - top[:, 0] - jnp.log(jnp.sum(weights, axis=-1))


def truncate(weights: Float[Array, "B V"], *, top_k: int, top_p: float) -> Float[Array, "B V"]:
    """Unnormalised probabilities with everything outside top-k, then outside top-p, set to 0.

    An id is in the top-p set when the ids likelier than it hold less than p of the mass (Holtzman
    et al., 2020). Ids that tie with the last one kept are kept.
    """
    if 0 < top_k < weights.shape[-1]:
        least = jax.lax.top_k(weights, top_k)[0][:, -1:]
        weights = jnp.where(weights >= least, weights, 0.0)
    if top_p < 1:
        ordered = -jnp.sort(-weights, axis=-1)
        before = jnp.cumsum(ordered, axis=-1) - ordered
        inside = before < top_p * jnp.sum(weights, axis=-1, keepdims=True)
        least = jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1, keepdims=True)
        weights = jnp.where(weights >= least, weights, 0.0)
    return weights


def inverse_cdf(weights: Float[Array, "B V"], uniform: Float[Array, "B"]) -> Int[Array, "B"]:
    """The id at `uniform` of the cumulative distribution: first the block, then the id inside it.

    Sums of blocks of CDF_BLOCK ids cost one pass over the vocabulary and one number per row; one
    Gumbel variable per id costs fifty times as much for a vocabulary of 150 k.

    Args:
      weights: probabilities up to a factor, >= 0, not all zero in any row.
      uniform: in [0, 1).
    """
    rows, vocab = weights.shape
    size = min(CDF_BLOCK, vocab)
    count = -(-vocab // size)
    blocks = jnp.pad(weights, ((0, 0), (0, count * size - vocab))).reshape(rows, count, size)
    mass = jnp.sum(blocks, axis=-1)
    block, rest = _first_above(mass, uniform * jnp.sum(mass, axis=-1))
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * size + _first_above(inside, rest)[0]


def _first_above(
    mass: Float[Array, "B n"], target: Float[Array, "B"]
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """The first entry whose running sum exceeds the target, and how far the target is into it.

    Only entries with mass qualify, whatever rounding does to the sums; when none does, the last
    entry with mass is taken.
    """
    total = jnp.cumsum(mass, axis=-1)
    some = mass > 0
    above = some & (total > target[:, None])
    last = mass.shape[-1] - 1 - jnp.argmax(some[:, ::-1], axis=-1)
    index = jnp.where(jnp.any(above, axis=-1), jnp.argmax(above, axis=-1), last)
    before = jnp.take_along_axis(total - mass, index[:, None], axis=-1)[:, 0]
    return index, jnp.maximum(target - before, 0.0)


# ------------------------------------------------------------------- the loop


class _State(struct.PyTreeNode, kw_only=True):
    """What the decode loop carries; `t` tokens have been drawn."""

    t: Int[Array, ""]
    tokens: Int[Array, "B R"]
    logp: Float[Array, "B R"]
    length: Int[Array, "B"]
    done: Bool[Array, "B"]
    cache: Cache


def sample(
    model: LanguageModel,
    params: Any,
    *,
    prompt: Int[Array, "B P"],
    prompt_length: Int[Array, "B"],
    key: Array,
    row_id: Int[Array, "B"],
    temperature: Float[Array, ""] | float,
    cfg: SamplingConfig,
) -> Generation:
    """`generate`, not compiled; the temperature may be an array."""
    head = model.head(params)
    row_keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, row_id)

    def emit(state: _State, hidden: Float[Array, "B 1 D"]) -> _State:
        """Draws token t of every row from the last hidden state and writes it down."""
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(row_keys, state.t)
        logits = jnp.einsum("bd,vd->bv", hidden[:, 0], head, preferred_element_type=jnp.float32)
        token, logp = pick(
            logits, jax.vmap(jax.random.uniform)(keys), temperature=temperature, cfg=cfg
        )
        token = jnp.where(state.done, cfg.pad_id, token)
        logp = jnp.where(state.done, 0.0, logp)
        ended = functools.reduce(jnp.logical_or, [token == e for e in cfg.eos_ids], state.done)
        column = (jnp.zeros((), jnp.int32), state.t)
        return state.replace(
            t=state.t + 1,
            tokens=jax.lax.dynamic_update_slice(state.tokens, token[:, None], column),
            logp=jax.lax.dynamic_update_slice(state.logp, logp[:, None], column),
            length=state.length + ~state.done,
            done=ended,
        )

    def advance(state: _State) -> _State:
        """Feeds the token drawn last and draws the next one."""
        token = jax.lax.dynamic_slice_in_dim(state.tokens, state.t - 1, 1, axis=1)
        hidden, cache = model.hidden(params, token, ~state.done[:, None], tail=1, cache=state.cache)
        return emit(state.replace(cache=cache), hidden)

    rows, columns = prompt.shape
    with jax.named_scope("prefill"):
        valid = jnp.arange(columns)[None, :] >= columns - prompt_length[:, None]
        cache = empty_cache(model.config, rows, columns)
        hidden, cache = model.hidden(params, prompt, valid, tail=1, cache=cache)
        state = _State(
            t=jnp.zeros((), jnp.int32),
            tokens=jnp.full((rows, cfg.max_new_tokens), cfg.pad_id, jnp.int32),
            logp=jnp.zeros((rows, cfg.max_new_tokens), jnp.float32),
            length=jnp.zeros((rows,), jnp.int32),
            done=prompt_length == 0,
            # the last token drawn is never fed
            cache=grow_cache(cache, cfg.max_new_tokens - 1),
        )
        state = emit(state, hidden)
    with jax.named_scope("decode"):
        state = jax.lax.while_loop(
            lambda s: (s.t < cfg.max_new_tokens) & ~jnp.all(s.done), advance, state
        )
    return Generation(tokens=state.tokens, logp=state.logp, length=state.length)


@functools.partial(jax.jit, static_argnames=("model", "cfg"))
def generate(
    model: LanguageModel,
    params: Any,
    *,
    prompt: Int[Array, "B P"],
    prompt_length: Int[Array, "B"],
    key: Array,
    row_id: Int[Array, "B"],
    cfg: SamplingConfig,
) -> Generation:
    """Samples one action per row; stops as soon as every row has ended.

    Token t of a row is drawn with the single uniform number of fold_in(fold_in(key, row_id), t).

    Args:
      model: static.
      params: of the model.
      prompt: ids, padded on the left.
      prompt_length: ids that are not padding; a row of length 0 is padding and yields length 0.
      key: a JAX random key.
      row_id: what tells the draws of two rows apart; rows that share it share their numbers.
      cfg: static.
    """
    return sample(
        model,
        params,
        prompt=prompt,
        prompt_length=prompt_length,
        key=key,
        row_id=row_id,
        temperature=cfg.temperature,
        cfg=cfg,
    )
