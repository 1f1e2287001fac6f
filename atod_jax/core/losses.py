"""The objective: what one token contributes to the loss, and the weighted sum over a batch.

Surrogates of the policy gradient, all with gradient -advantage at ratio 1:
    ppo     clipped ratio (arXiv 1707.06347) with two bounds, and a lower bound for negative
            advantages known as dual clip (arXiv 1912.09729)
    gspo    the same with one ratio per row, the geometric mean of its tokens' (arXiv 2507.18071)
    cispo   -stopgrad(clip(ratio)) A log p: clipped tokens keep their gradient (arXiv 2506.13585)
"""

import dataclasses
import functools
from typing import NamedTuple

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


class Streams(NamedTuple):
    """What the terms of the objective read, for one set of rows."""

    stats: TokenStats  # of the policy that is differentiated
    signal: Signal
    action_mask: Bool[Array, "N R"]
    sampler_logp: Float[Array, "N R"] | None

    def on(self, x: Float[Array, "N R"] | None, needed_by: str = "") -> Float[Array, "N R"]:
        """`x` on action tokens, 0 elsewhere.

        Raises:
          ValueError: it is not there.
        """
        if x is None:
            raise ValueError(f"{needed_by} needs a stream that this batch lacks")
        return jnp.where(self.action_mask, x, 0.0)


# What a term adds to the loss of every token, and its metrics per token, on action tokens.
Term = tuple[Float[Array, "N R"], dict[str, Array]]


def objective(
    stats: TokenStats,
    signal: Signal,
    *,
    action_mask: Bool[Array, "N R"],
    share: Float[Array, "N R"],
    cfg: LossConfig,
    sampler_logp: Float[Array, "N R"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Mean]]:
    """sum over action tokens of share * (surrogate + the other terms of `Signal` - entropy bonus).

    Shares come from the full batch, so the losses of the pieces of a batch add up to its loss.

    Args:
      stats: of the policy that is differentiated, nats.
      signal: streams for the same rows; values where the mask is false are ignored.
      action_mask: True where the student sampled the token.
      share: weight of each token in the loss, see `core.aggregation`.
      cfg: surrogate, clip bounds, bonus and penalties.
      sampler_logp: under the policy as the sampler computed it; used with cfg.tis_cap.

    Returns:
      The loss, and means over action tokens under `loss/*`.

    Raises:
      ValueError: an option needs a stream that is not there.
    """
    streams = Streams(stats, signal, action_mask, sampler_logp)
    present = [term for make in TERMS if (term := make(streams, cfg)) is not None]
    per_token = functools.reduce(jnp.add, [x for x, _ in present])
    weight = jnp.sum(action_mask, dtype=jnp.float32)
    metrics = {
        name: Mean(total=jnp.sum(jnp.where(action_mask, x, 0.0)), weight=weight)
        for _, named in present
        for name, x in named.items()
    }
    return jnp.sum(jnp.where(action_mask, share * per_token, 0.0)), metrics


# ------------------------------------------------------------------- the terms


def policy_term(s: Streams, cfg: LossConfig) -> Term | None:
    """The surrogate, with importance weights if `tis_cap` asks for them; none without a policy
    that acted (`Signal.old_logp`)."""
    if s.signal.old_logp is None:
        return None
    logp, old_logp, advantage = (
        s.on(x) for x in (s.stats.logp, s.signal.old_logp, s.signal.advantage)
    )
    loss = surrogate(logp, old_logp, advantage=advantage, action_mask=s.action_mask, cfg=cfg)
    log_ratio = _log_ratio(logp, old_logp, s.action_mask, cfg)
    unclipped, clipped = _branches(log_ratio, advantage, cfg)
    lower = (jnp.maximum(unclipped, clipped) > -advantage * cfg.dual_clip) & (advantage < 0)
    metrics = {
        "loss/clip_fraction": clipped > unclipped,
        "loss/clip_fraction_lower": lower,
        "loss/ppo_kl": old_logp - logp,
    }
    if not cfg.tis_cap:
        return loss, metrics
    weight = importance(old_logp, s.on(s.sampler_logp, "tis_cap"), cap=cfg.tis_cap)
    return weight * loss, metrics | {"loss/tis_weight": weight}


def entropy_term(s: Streams, cfg: LossConfig) -> Term:
    """-entropy_coef H; with or without a bonus it is told, and so is the mean nll."""
    entropy = s.on(s.stats.entropy)
    told = {"loss/entropy": entropy, "loss/nll": -s.on(s.stats.logp)}
    return -(cfg.entropy_coef * entropy), told


def supervised_term(s: Streams, cfg: LossConfig) -> Term | None:
    """-ce_weight log p."""
    if s.signal.ce_weight is None:
        return None
    return -(s.on(s.signal.ce_weight) * s.on(s.stats.logp)), {}


def teacher_kl_term(s: Streams, cfg: LossConfig) -> Term | None:
    """kl_weight KL(student || teacher) over the vocabulary."""
    if s.signal.kl_weight is None:
        return None
    kl = s.on(s.stats.reverse_kl, "kl_weight")
    return s.on(s.signal.kl_weight) * kl, {"loss/teacher_kl": kl}


def gate_term(s: Streams, cfg: LossConfig) -> Term | None:
    """gate_weight times the gated gap to the teacher (SDAR)."""
    if s.signal.gate_weight is None:
        return None
    teacher_logp = s.on(s.signal.teacher_logp, "gate_weight")
    gap, gate = gated_gap(s.on(s.stats.logp), teacher_logp, beta=cfg.gate_beta)
    return s.on(s.signal.gate_weight) * gap, {"loss/gate": gate}


def start_kl_term(s: Streams, cfg: LossConfig) -> Term | None:
    """kl_coef times the k3 estimate of KL(student || start weights)."""
    if not cfg.kl_coef:
        return None
    penalty = k3(s.on(s.stats.logp), s.on(s.signal.reference_logp, "kl_coef"))
    return cfg.kl_coef * penalty, {"loss/kl_start": penalty}


TERMS = (policy_term, entropy_term, supervised_term, teacher_kl_term, gate_term, start_kl_term)


def surrogate(
    logp: Float[Array, "N R"],
    old_logp: Float[Array, "N R"],
    *,
    advantage: Float[Array, "N R"],
    action_mask: Bool[Array, "N R"],
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
    """log(p / p_old) per token; for gspo the mean of the row, with the token's gradient."""
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
