"""The objective: what one token contributes to the loss, and the sum over a batch.

The surrogate is the clipped policy-gradient loss (PPO, arXiv 1707.06347) with two clip bounds and
the lower bound for negative advantages known as dual clip (arXiv 1912.09729).
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from atod_jax.types import Mean, Signal, TokenStats

# exp() of a larger log-ratio may overflow and turn the backward pass into nan. Every such token is
# already clipped on both sides (dual_clip < e^20), so the bound changes neither value nor gradient.
_MAX_LOG_RATIO = 20.0


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Options of the objective; defaults are those of the released ATOD runs, bar the entropy."""

    clip_low: float = 0.2  # the ratio is clipped to [1 - clip_low, 1 + clip_high]
    clip_high: float = 0.2
    dual_clip: float = 3.0  # where A < 0 the loss is at most -A * dual_clip
    entropy_coef: float = 0.0  # nats; released runs 0.001

    def __post_init__(self):
        if not 1 + self.clip_high <= self.dual_clip <= 1e6:
            raise ValueError(
                f"dual_clip={self.dual_clip}: must lie in [1 + clip_high, 1e6], "
                f"clip_high={self.clip_high}; 3 is usual, 1e6 turns it off"
            )
        if not (0 <= self.clip_low <= 1 and self.clip_high >= 0):
            raise ValueError(
                f"clip_low={self.clip_low}, clip_high={self.clip_high}: "
                "need 0 <= clip_low <= 1 and clip_high >= 0"
            )


def surrogate(
    logp: Float[Array, "N R"],
    old_logp: Float[Array, "N R"],
    advantage: Float[Array, "N R"],
    *,
    cfg: LossConfig,
) -> Float[Array, "N R"]:
    """Clipped loss per token, to be minimised; at ratio 1 its gradient in `logp` is -advantage.

    ratio = exp(logp - old_logp); L = max(-A ratio, -A clip(ratio, 1 - low, 1 + high)), and where
    A < 0 also L <= -A dual_clip.
    """
    unclipped, clipped = _branches(logp - old_logp, advantage, cfg)
    loss = jnp.maximum(unclipped, clipped)
    return jnp.where(advantage < 0, jnp.minimum(loss, -advantage * cfg.dual_clip), loss)


def objective(
    stats: TokenStats,
    action_mask: Bool[Array, "N R"],
    signal: Signal,
    cfg: LossConfig,
) -> tuple[Float[Array, ""], dict[str, Mean]]:
    """[sum surrogate - sum ce_weight * logp - entropy_coef * sum entropy] / norm, and metrics.

    Sums run over action tokens. The denominator is the signal's, so the losses of the pieces of a
    batch add up to the loss of the batch.

    Args:
      stats: of the policy that is differentiated, nats.
      action_mask: True where the student sampled the token.
      signal: streams for the same rows; values where the mask is false are ignored.
      cfg: clip bounds and entropy bonus.

    Returns:
      The loss, and means over action tokens under `loss/*`.
    """
    logp = jnp.where(action_mask, stats.logp, 0.0)
    old_logp = jnp.where(action_mask, signal.old_logp, 0.0)
    advantage = jnp.where(action_mask, signal.advantage, 0.0)
    ce_weight = jnp.where(action_mask, signal.ce_weight, 0.0)
    entropy = jnp.where(action_mask, stats.entropy, 0.0)
    per_token = surrogate(logp, old_logp, advantage, cfg=cfg) - ce_weight * logp
    loss = jnp.sum(per_token - cfg.entropy_coef * entropy) / signal.norm

    unclipped, clipped = _branches(logp - old_logp, advantage, cfg)
    lower = (jnp.maximum(unclipped, clipped) > -advantage * cfg.dual_clip) & (advantage < 0)
    streams = {
        "loss/clip_fraction": clipped > unclipped,
        "loss/clip_fraction_lower": lower,
        "loss/ppo_kl": old_logp - logp,
        "loss/entropy": entropy,
        "loss/nll": -logp,
    }
    weight = jnp.sum(action_mask, dtype=jnp.float32)
    return loss, {
        name: Mean(total=jnp.sum(x, dtype=jnp.float32), weight=weight)
        for name, x in streams.items()
    }


def k3(
    logp: Float[Array, "N R"], reference_logp: Float[Array, "N R"], *, bound: float = 10.0
) -> Float[Array, "N R"]:
    """KL estimate per token, clip(exp(q) - q - 1, -bound, bound) with q = reference_logp - logp.

    Non-negative and unbiased for samples of the policy (Schulman 2020), in nats.
    """
    q = jnp.minimum(reference_logp - logp, _MAX_LOG_RATIO)
    return jnp.clip(jnp.exp(q) - q - 1.0, -bound, bound)


def _branches(
    log_ratio: Float[Array, "N R"], advantage: Float[Array, "N R"], cfg: LossConfig
) -> tuple[Float[Array, "N R"], Float[Array, "N R"]]:
    ratio = jnp.exp(jnp.minimum(log_ratio, _MAX_LOG_RATIO))
    clipped = jnp.clip(ratio, 1 - cfg.clip_low, 1 + cfg.clip_high)
    return -advantage * ratio, -advantage * clipped
