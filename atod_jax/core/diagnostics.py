"""Means that say whether a batch can teach anything; logged by every algorithm.

Two of them are early signs rather than decoration: the KL on the first token of an action (it
halves early in runs that work) and the share of groups with mixed returns (0 means that the reward
term is silent). All are (sum, weight), so they add up exactly.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from atod_jax.core import masked
from atod_jax.types import Mean, Rows, TokenStats, TurnBatch


def scalar(x: Float[Array, ""]) -> Mean:
    """One number of the whole batch, as a mean of weight 1."""
    return Mean(total=x, weight=jnp.ones_like(x))


def real_rows(batch: TurnBatch) -> Bool[Array, "N"]:
    """True on rows that are not padding."""
    return batch.rows.traj < batch.returns.shape[0]


def of_student(batch: TurnBatch, student: TokenStats) -> dict[str, Mean]:
    """Entropy, gap between sampler and trainer (nats), share of groups with mixed returns."""
    rows = batch.rows
    num = batch.group.shape[0]
    best = masked.segment_max(batch.returns, batch.group, num=num)
    worst = masked.segment_min(batch.returns, batch.group, num=num)
    present = masked.segment_count(batch.group, num=num) > 0
    gap = jnp.abs(rows.sampler_logp - student.logp)
    return {
        "student/entropy": masked.padded_mean(student.entropy, rows.action_mask),
        "student/sampler_gap": masked.padded_mean(gap, rows.action_mask),
        "rollout/mixed_groups": masked.masked_mean((best > worst).astype(jnp.float32), present),
    }


def of_teacher(rows: Rows, student: TokenStats, *, teacher: TokenStats) -> dict[str, Mean]:
    """Sampled reverse KL, mean of lpS - lpT in nats: all tokens, the first ("verb"), the rest."""
    gap, mask = student.logp - teacher.logp, rows.action_mask
    whole = masked.masked_mean(gap, mask)
    verb = masked.masked_mean(gap[:, :1], mask[:, :1])
    rest = Mean(total=whole.total - verb.total, weight=whole.weight - verb.weight)
    return {"kl/token": whole, "kl/verb": verb, "kl/argument": rest}


def of_rows(x: Float[Array, "N"], action_mask: Bool[Array, "N R"]) -> Mean:
    """The token mean of a number that is the same for all tokens of a row."""
    length = masked.row_count(action_mask)
    return Mean(total=jnp.sum(x * length), weight=jnp.sum(length))


def of_weights(batch: TurnBatch, weight: Float[Array, "N"]) -> dict[str, Mean]:
    """Mean, smallest and largest weight of the distillation term over real rows."""
    real = real_rows(batch)
    return {
        "turn_weight/mean": masked.masked_mean(weight, real),
        "turn_weight/min": scalar(jnp.min(weight, where=real, initial=jnp.inf)),
        "turn_weight/max": scalar(jnp.max(weight, where=real, initial=-jnp.inf)),
    }
