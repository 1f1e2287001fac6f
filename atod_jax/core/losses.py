"""The objective: what one token contributes to the loss, and the weighted sum over a batch.

Surrogates of the policy gradient, all with gradient -advantage at ratio 1:
    ppo     clipped ratio (arXiv 1707.06347) with two bounds, and a lower bound for negative
            advantages known as dual clip (arXiv 1912.09729)
    gspo    the same with one ratio per row, the geometric mean of its tokens' (arXiv 2507.18071)
    cispo   -stopgrad(clip(ratio)) A log p: clipped tokens keep their gradient (arXiv 2506.13585)
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from atod_jax.core.aggregation import MODES
from atod_jax.options.field import at_least, check, one_of, option, within
from atod_jax.types import Mean, Signal, TokenStats

SURROGATES = ("ppo", "gspo", "cispo")

# exp() of a larger log-ratio may overflow and turn the backward pass into nan. Every such token is
# already clipped on both sides (dual_clip < e^20), so the bound changes neither value nor gradient.
_MAX_LOG_RATIO = 20.0


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Options of the objective; defaults are those of the released ATOD runs, bar the entropy."""

    surrogate: str = option("ppo", "ppo | gspo | cispo", one_of(*SURROGATES))
    clip_low: float = option(
        0.2, "the ratio is clipped to [1 - clip_low, 1 + clip_high]", within(0, 1)
    )
    clip_high: float = option(0.2, "see clip_low", at_least(0))
    dual_clip: float = option(3.0, "where A < 0 the loss is at most -A dual_clip; not with cispo")
    aggregation: str = option("token-mean", "how tokens become one number", one_of(*MODES))
    entropy_coef: float = option(
        0.0, "entropy bonus; released runs 0.001", at_least(0, "0 turns it off")
    )
    kl_coef: float = option(
        0.0, "of the k3 estimate of KL(student || start weights)", at_least(0, "0 turns it off")
    )
    tis_cap: float = option(
        0.0, "importance weight min(p_trainer / p_sampler, cap)", at_least(0, "0 turns it off")
    )
    gate_beta: float = option(5.0, "1/nats; sharpness of the gate of SDAR", at_least(0))

    def __post_init__(self):
        check(self)
        if not 1 + self.clip_high <= self.dual_clip <= 1e6:
            raise ValueError(
                f"dual_clip={self.dual_clip}: must lie in [1 + clip_high, 1e6], "
                f"clip_high={self.clip_high}; 3 is usual, 1e6 turns it off"
            )


def surrogate(
    logp: Float[Array, "N R"],
    old_logp: Float[Array, "N R"],
    advantage: Float[Array, "N R"],
    action_mask: Bool[Array, "N R"],
    *,
    cfg: LossConfig,
) -> Float[Array, "N R"]:
    """Policy-gradient loss per token, to be minimised; at ratio 1 its gradient is -advantage.

    ppo: ratio = exp(logp - old_logp); L = max(-A ratio, -A clip(ratio, 1 - low, 1 + high)), and
    where A < 0 also L <= -A dual_clip. `action_mask` matters to gspo, which averages over a row.
    """
    log_ratio = _log_ratio(logp, old_logp, action_mask, cfg)
    if cfg.surrogate == "cispo":
        return -jax.lax.stop_gradient(_clip(jnp.exp(log_ratio), cfg)) * advantage * logp
    unclipped, clipped = _branches(log_ratio, advantage, cfg)
    loss = jnp.maximum(unclipped, clipped)
    return jnp.where(advantage < 0, jnp.minimum(loss, -advantage * cfg.dual_clip), loss)


def objective(
    stats: TokenStats,
    action_mask: Bool[Array, "N R"],
    signal: Signal,
    share: Float[Array, "N R"],
    cfg: LossConfig,
    *,
    sampler_logp: Float[Array, "N R"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Mean]]:
    """sum over action tokens of share * (surrogate + the other terms of `Signal` - entropy bonus).

    Shares come from the full batch, so the losses of the pieces of a batch add up to its loss.

    Args:
      stats: of the policy that is differentiated, nats.
      action_mask: True where the student sampled the token.
      signal: streams for the same rows; values where the mask is false are ignored.
      share: weight of each token in the loss, see `core.aggregation`.
      cfg: surrogate, clip bounds, bonus and penalties.
      sampler_logp: under the policy as the sampler computed it; used with cfg.tis_cap.

    Returns:
      The loss, and means over action tokens under `loss/*`.

    Raises:
      ValueError: an option needs a stream that is not there.
    """

    def on(x: Array | None, needed_by: str = "") -> Array:
        if x is None:
            raise ValueError(f"{needed_by} needs a stream that this batch lacks")
        return jnp.where(action_mask, x, 0.0)

    logp, old_logp, advantage = on(stats.logp), on(signal.old_logp), on(signal.advantage)
    entropy = on(stats.entropy)
    policy = surrogate(logp, old_logp, advantage, action_mask, cfg=cfg)
    terms = {}
    if cfg.tis_cap:
        weight = importance(old_logp, on(sampler_logp, "tis_cap"), cap=cfg.tis_cap)
        policy, terms["loss/tis_weight"] = weight * policy, weight
    per_token = policy - cfg.entropy_coef * entropy
    if signal.ce_weight is not None:
        per_token -= on(signal.ce_weight) * logp
    if signal.kl_weight is not None:
        kl = terms["loss/teacher_kl"] = on(stats.reverse_kl, "kl_weight")
        per_token += on(signal.kl_weight) * kl
    if signal.gate_weight is not None:
        gap, gate = gated_gap(logp, on(signal.teacher_logp, "gate_weight"), beta=cfg.gate_beta)
        per_token, terms["loss/gate"] = per_token + on(signal.gate_weight) * gap, gate
    if cfg.kl_coef:
        penalty = terms["loss/kl_start"] = k3(logp, on(signal.reference_logp, "kl_coef"))
        per_token += cfg.kl_coef * penalty

    log_ratio = _log_ratio(logp, old_logp, action_mask, cfg)
    unclipped, clipped = _branches(log_ratio, advantage, cfg)
    lower = (jnp.maximum(unclipped, clipped) > -advantage * cfg.dual_clip) & (advantage < 0)
    terms |= {
        "loss/clip_fraction": clipped > unclipped,
        "loss/clip_fraction_lower": lower,
        "loss/ppo_kl": old_logp - logp,
        "loss/entropy": entropy,
        "loss/nll": -logp,
    }
    weight = jnp.sum(action_mask, dtype=jnp.float32)
    metrics = {
        name: Mean(total=jnp.sum(jnp.where(action_mask, x, 0.0)), weight=weight)
        for name, x in terms.items()
    }
    return jnp.sum(jnp.where(action_mask, share * per_token, 0.0)), metrics


def k3(
    logp: Float[Array, "N R"], reference_logp: Float[Array, "N R"], *, bound: float = 10.0
) -> Float[Array, "N R"]:
    """KL estimate per token, clip(exp(q) - q - 1, -bound, bound) with q = reference_logp - logp.

    Non-negative and unbiased for samples of the policy (Schulman 2020), in nats.
    """
    q = jnp.minimum(reference_logp - logp, _MAX_LOG_RATIO)
    return jnp.clip(jnp.exp(q) - q - 1.0, -bound, bound)


def gated_gap(
    logp: Float[Array, "N R"], teacher_logp: Float[Array, "N R"], *, beta: float
) -> tuple[Float[Array, "N R"], Float[Array, "N R"]]:
    """(g (lpT - lp), g) with g = stopgrad sigmoid(beta (lpT - lp)) (SDAR, arXiv 2605.15155).

    Minimising the first raises the log-probability of sampled tokens that the teacher likes better.
    """
    gap = teacher_logp - logp
    gate = jax.lax.stop_gradient(jax.nn.sigmoid(beta * gap))
    return gate * gap, gate


def importance(
    old_logp: Float[Array, "N R"], sampler_logp: Float[Array, "N R"], *, cap: float
) -> Float[Array, "N R"]:
    """min(p_old / p_sampler, cap): corrects for a sampler that computes other probabilities.

    A constant weight per token (truncated importance sampling, Ionides 2008).
    """
    log_weight = jnp.minimum(old_logp - sampler_logp, _MAX_LOG_RATIO)
    return jax.lax.stop_gradient(jnp.minimum(jnp.exp(log_weight), cap))


def _log_ratio(
    logp: Float[Array, "N R"],
    old_logp: Float[Array, "N R"],
    action_mask: Bool[Array, "N R"],
    cfg: LossConfig,
) -> Float[Array, "N R"]:
    """Of the token, or for gspo of its row, with the gradient of the token's log-probability."""
    log_ratio = logp - old_logp
    if cfg.surrogate == "gspo":
        kept = jnp.where(action_mask, jax.lax.stop_gradient(log_ratio), 0.0)
        length = jnp.maximum(jnp.sum(action_mask, axis=1, keepdims=True), 1)
        row = jnp.sum(kept, axis=1, keepdims=True) / length
        log_ratio = row + logp - jax.lax.stop_gradient(logp)
    return jnp.minimum(log_ratio, _MAX_LOG_RATIO)


def _clip(ratio: Float[Array, "N R"], cfg: LossConfig) -> Float[Array, "N R"]:
    return jnp.clip(ratio, 1 - cfg.clip_low, 1 + cfg.clip_high)


def _branches(
    log_ratio: Float[Array, "N R"], advantage: Float[Array, "N R"], cfg: LossConfig
) -> tuple[Float[Array, "N R"], Float[Array, "N R"]]:
    ratio = jnp.exp(log_ratio)
    return -advantage * ratio, -advantage * _clip(ratio, cfg)
