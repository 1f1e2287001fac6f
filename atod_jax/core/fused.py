"""Log-probability and entropy of sampled tokens without the [N, R, V] array of logits.

With a vocabulary of 150 k the logits of one batch are larger than the model, so they are made for
one block of tokens at a time and made again in the backward pass. The naive form of the same
numbers lives in the tests as the oracle.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from atod_jax.types import TokenStats

_NEVER = -1e30  # logit of a forbidden id: exp is exactly 0, and 0 * logit stays 0 (not nan)


def token_stats(
    hidden: Float[Array, "N R D"],
    head: Float[Array, "V D"],
    action: Int[Array, "N R"],
    action_mask: Bool[Array, "N R"],
    *,
    temperature: float,
    block: int,
    forbidden: tuple[int, ...] = (),
) -> TokenStats:
    """log p(a) and H(p) in nats, p = softmax(hidden @ head.T / temperature) without forbidden ids.

    Float32 whatever the input type; differentiable in `hidden` and `head`; zero where
    `action_mask` is false. At most `block` x V logits exist at any time, in both passes.

    Args:
      hidden: final hidden states; entry [n, r] predicts `action[n, r]`.
      head: output embedding.
      action: sampled ids; any valid id where masked.
      action_mask: True where a token was sampled.
      temperature: of the policy being scored, > 0.
      block: tokens per block.
      forbidden: ids outside the policy's support (the sampler must not produce them).

    Raises:
      ValueError: `block` or `temperature` not positive.
    """
    if block < 1:
        raise ValueError(f"block={block}: give at least 1 token per block of the head")
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: log-probabilities need a value > 0")

    @jax.checkpoint
    def one_block(tokens):
        return _block_stats(*tokens, head, temperature=temperature, forbidden=forbidden)

    logp, entropy = jax.lax.map(one_block, (_to_blocks(hidden, block), _to_blocks(action, block)))
    shape = action.shape
    return TokenStats(
        logp=jnp.where(action_mask, _from_blocks(logp, shape), 0.0),
        entropy=jnp.where(action_mask, _from_blocks(entropy, shape), 0.0),
    )


def mask_logits(logits: Float[Array, "T V"], forbidden: tuple[int, ...]) -> Float[Array, "T V"]:
    """The logits without the forbidden ids; sampler and scorer share this, so they agree."""
    return logits.at[:, jnp.array(forbidden)].set(_NEVER) if forbidden else logits


def _block_stats(
    hidden: Float[Array, "T D"],
    action: Int[Array, "T"],
    head: Float[Array, "V D"],
    *,
    temperature: float,
    forbidden: tuple[int, ...],
) -> tuple[Float[Array, "T"], Float[Array, "T"]]:
    logits = jnp.einsum("td,vd->tv", hidden, head, preferred_element_type=jnp.float32)
    logits = mask_logits(logits / temperature, forbidden)
    logp = jax.nn.log_softmax(logits, axis=-1)
    entropy = -jnp.sum(jnp.exp(logp) * logp, axis=-1)
    return jnp.take_along_axis(logp, action[:, None], axis=-1)[:, 0], entropy


def _to_blocks(x: Array, block: int) -> Array:
    """[N, R, ...] -> [blocks, block, ...], padded with zeros.

    Block j takes every blocks-th token: when N is sharded, each device then holds an equal share of
    every block, and the scan runs over an axis that is not sharded.
    """
    flat = x.reshape(-1, *x.shape[2:])
    blocks = -(-flat.shape[0] // block)
    padding = [(0, blocks * block - flat.shape[0])] + [(0, 0)] * (flat.ndim - 1)
    return jnp.swapaxes(jnp.pad(flat, padding).reshape(block, blocks, *flat.shape[1:]), 0, 1)


def _from_blocks(x: Array, shape: tuple[int, int]) -> Array:
    return jnp.swapaxes(x, 0, 1).reshape(-1)[: shape[0] * shape[1]].reshape(shape)
