"""One token per row from logits, and how actions are drawn. `slots` makes whole actions of it.

Log-probabilities are those of the untruncated policy softmax(logits / temperature) over the ids
that are not forbidden, which is what scoring recomputes.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from atod_jax.core.fused import support_bias

CDF_BLOCK = 512  # ids per block of the two-level search


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How actions are drawn. Hashable; `program` is the part that compiled programs depend on."""

    max_new_tokens: int  # R
    prompt_buckets: tuple[int, ...]  # lengths a prompt is padded to, ascending
    slots: int  # actions written side by side by one process, at most
    eos_ids: tuple[int, ...]  # any of these ends an action and is part of it
    pad_id: int  # fills what follows an action
    temperature: float = 1.0  # 0 = greedy
    top_k: int = 0  # keep the k likeliest ids; 0 = all
    top_p: float = 1.0  # keep the smallest set of ids with this probability; 1 = all
    vocab: int = 0  # ids that can be drawn are below this; 0 = every row of the head
    forbidden: tuple[int, ...] = ()  # ids that cannot be drawn, e.g. padding
    look: int = 8  # steps between two looks of the host, where actions are long

    @property
    def program(self) -> "SamplingConfig":
        """Equal for configs that share compiled programs: what only the host needs is neutral."""
        return dataclasses.replace(self, temperature=1.0, slots=1, prompt_buckets=(1,))

    @property
    def chunk(self) -> int:
        """C, the tokens that every slot is fed before the host looks: all of a short action."""
        whole = max(1, self.max_new_tokens - 1)  # the last token is never fed
        return whole if whole <= 2 * self.look else self.look

    @property
    def room(self) -> int:
        """Columns behind a prompt: none where an action is never longer than a chunk."""
        return 0 if self.chunk >= self.max_new_tokens - 1 else self.max_new_tokens

    def __post_init__(self):
        if self.max_new_tokens < 1 or self.slots < 1:
            raise ValueError(f"{self.max_new_tokens=} and {self.slots=} must be at least 1")
        ascending = sorted(set(self.prompt_buckets))
        if not ascending or ascending[0] < 1 or list(self.prompt_buckets) != ascending:
            raise ValueError(f"{self.prompt_buckets=}: give positive lengths in ascending order")
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"{self.temperature=} (>= 0), {self.top_k=} (>= 0), {self.top_p=} (0 < p <= 1)"
            )
        if set(self.eos_ids) & set(self.forbidden):
            raise ValueError(f"{self.forbidden=} holds an end id of {self.eos_ids=}")


# --------------------------------------------------------------------- one distribution


def pick(
    logits: Float[Array, "V B"],
    uniform: Float[Array, "B"],
    *,
    temperature: Float[Array, ""] | float,
    cfg: SamplingConfig,
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """One id per row and its log-probability, from one uniform number per row.

    The id at `uniform` of the cumulative distribution: first the block, then the id inside it. Two
    passes over the vocabulary (the maxima of blocks of CDF_BLOCK ids, the sums of their weights)
    and one number per row; one Gumbel variable per id costs fifty times as much for a vocabulary of
    150 k. Ids come first because the head's product is fastest so, and its sums too.

    Args:
      logits: of every id, a column per row.
      uniform: in [0, 1).
      temperature: an argument, not a constant: evaluating at two costs one compilation. 0 = greedy.
      cfg: static.

    Returns:
      The id, and log softmax(logits / temperature)[id] without forbidden ids (temperature 1 when
      greedy); truncation by top_k and top_p changes the draw, not the log-probability.
    """
    sampled = jnp.asarray(temperature, jnp.float32) > 0
    scale = jnp.where(sampled, temperature, 1.0)
    bias = support_bias(logits.shape[0], vocab=cfg.vocab, forbidden=cfg.forbidden)
    scores = logits.astype(jnp.float32) / scale + bias[:, None]
    most = jnp.max(_blocks(scores, -jnp.inf), axis=1)
    top = jnp.max(most, axis=0)
    weights = jnp.exp(scores - top[None])
    total = jnp.sum(mass := jnp.sum(_blocks(weights, 0.0), axis=1), axis=0)
    least = jnp.zeros(())
    if cfg.top_k or cfg.top_p < 1:
        least = least_kept(weights.T, top_k=cfg.top_k, top_p=cfg.top_p)[:, None]
        mass = jnp.sum(_blocks(jnp.where(weights >= least.T, weights, 0.0), 0.0), axis=1)
    drawn, rest = _first_above(mass.T, uniform * jnp.sum(mass, axis=0))
    block = jnp.where(sampled, drawn, jnp.argmax(most, axis=0))
    # of one block only, so that no array of all scores or weights is ever written
    size = min(CDF_BLOCK, logits.shape[0])
    ids = block[:, None] * size + jnp.arange(size)[None]
    own = logits.at[ids, jnp.arange(len(block))[:, None]].get(mode="fill", fill_value=-jnp.inf)
    own = own.astype(jnp.float32) / scale + bias.at[ids].get(mode="clip")
    inside = jnp.exp(own - top[:, None])
    drawn, _ = _first_above(jnp.where(inside >= least, inside, 0.0), rest)
    place = jnp.where(sampled, drawn, jnp.argmax(own, axis=1))
    chosen = jnp.take_along_axis(own, place[:, None], axis=1)[:, 0]
    return (block * size + place).astype(jnp.int32), chosen - top - jnp.log(total)


def _blocks(x: Float[Array, "V B"], fill: float) -> Float[Array, "n size B"]:
    """The ids in blocks, the last one filled up."""
    size = min(CDF_BLOCK, x.shape[0])
    return jnp.pad(x, ((0, -len(x) % size), (0, 0)), constant_values=fill).reshape(
        -1, size, x.shape[1]
    )


def least_kept(weights: Float[Array, "B V"], *, top_k: int, top_p: float) -> Float[Array, "B"]:
    """The smallest unnormalised probability that is inside top-k, and then inside top-p.

    An id is in the top-p set when the ids likelier than it hold less than p of the mass (Holtzman
    et al., 2020). Ids that tie with the last one kept are kept.
    """
    ordered = -jnp.sort(-weights, axis=-1)
    least = ordered[:, min(top_k or weights.shape[1], weights.shape[1]) - 1]
    ordered = jnp.where(ordered >= least[:, None], ordered, 0.0)
    before = jnp.cumsum(ordered, axis=-1) - ordered
    inside = (ordered > 0) & (before < top_p * jnp.sum(ordered, axis=-1, keepdims=True))
    return jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1)


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
