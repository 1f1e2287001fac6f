"""Advantages from rewards: group-relative (GRPO) and with a per-state term (GiGPO).

One number per row; the algorithms spread it over the row's tokens.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from atod_jax.core import masked
from atod_jax.options.field import above, at_least, check, one_of, option, within
from atod_jax.types import TurnBatch

ESTIMATORS = ("grpo", "gigpo")
STATISTICS = ("turns", "trajectories")


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """The reward term; defaults are those of the released runs for ALFWorld and WebShop."""

    estimator: str = option(
        "grpo", "grpo | gigpo (compares also turns that saw the same observation)",
        one_of(*ESTIMATORS),
    )  # fmt: skip
    statistics: str = option(
        "turns", "scores of a group are its turns' | its trajectories'", one_of(*STATISTICS)
    )
    scale: bool = option(True, "divide by the standard deviation of the group")
    invalid_penalty: float = option(
        0.1, "off the score of a row whose action is invalid", at_least(0)
    )
    eps: float = option(1e-6, "added to the standard deviation", above(0))
    gigpo_gamma: float = option(0.95, "discount per turn of the return of a turn", within(0, 1))
    gigpo_weight: float = option(1.0, "weight of the per-turn term", at_least(0))

    def __post_init__(self):
        check(self)


def row_advantages(batch: TurnBatch, *, cfg: RewardConfig) -> Float[Array, "N"]:
    """The advantage of every row from rewards alone, by the estimator of `cfg`."""
    rows = batch.rows
    penalty = {"action_valid": rows.action_valid, "invalid_penalty": cfg.invalid_penalty}
    scores = row_scores(batch.returns, rows.traj, **penalty)
    if cfg.estimator == "grpo":
        return group_relative(scores, rows.traj, group=batch.group, cfg=cfg)
    returns = step_returns(rows.reward, rows.traj, turn=rows.turn, gamma=cfg.gigpo_gamma)
    own = jnp.arange(returns.shape[0])  # give every turn its own segment id
    return gigpo(
        scores,
        row_scores(returns, own, **penalty),
        traj=rows.traj,
        group=batch.group,
        anchor=rows.anchor,
        cfg=cfg,
    )


def row_scores(
    returns: Float[Array, "B"],
    traj: Int[Array, "N"],
    *,
    action_valid: Bool[Array, "N"],
    invalid_penalty: float,
) -> Float[Array, "N"]:
    """Return of the row's trajectory, minus `invalid_penalty` where its own action is invalid.

    The penalty is per row, so the rows of one trajectory can differ. Padding rows score 0.
    """
    scores = masked.spread(returns, traj, fill=0.0)
    penalised = ~action_valid & (traj < returns.shape[0])
    return jnp.where(penalised, scores - invalid_penalty, scores)


def group_relative(
    scores: Float[Array, "N"],
    traj: Int[Array, "N"],
    *,
    group: Int[Array, "B"],
    cfg: RewardConfig,
) -> Float[Array, "N"]:
    """A_b = (r_b - mu_g) / (sigma_g + eps) per row, sigma the unbiased standard deviation.

    With statistics "turns" mu and sigma run over the rows of the group, so long trajectories weigh
    more; with "trajectories" over one score per trajectory, that of its first row in the batch.
    A group with one sample has mu = 0 and sigma = 1. Equal scores give exactly 0. Padding rows
    get 0.

    Args:
      scores: see `row_scores`.
      traj: trajectory of each row, B on padding rows.
      group: group of each trajectory, ids below B.
      cfg: convention and scaling.
    """
    num = group.shape[0]
    row_group = masked.spread(group, traj, fill=num)
    sampled = row_group
    if cfg.statistics == "trajectories":
        sampled = jnp.where(first_rows(traj, jnp.zeros_like(traj), num=num), row_group, num)
    single = masked.segment_count(sampled, num=num) == 1
    centred = jnp.where(
        masked.spread(single, row_group, fill=False),
        scores,
        masked.segment_centre(scores, row_group, samples=sampled, num=num),
    )
    std = jnp.where(single, 1.0, masked.segment_std(scores, sampled, num=num))
    divisor = std + cfg.eps if cfg.scale else jnp.ones_like(std)
    return jnp.where(traj < num, centred / masked.spread(divisor, row_group, fill=1.0), 0.0)


def first_rows(ids: Int[Array, "N"], order: Int[Array, "N"], *, num: int) -> Bool[Array, "N"]:
    """True on the row of each segment with the smallest `order`; ties go to the earlier row."""
    index = jnp.arange(ids.shape[0])
    leads = order == masked.spread(masked.segment_min(order, ids, num=num), ids, fill=-1)
    first = masked.segment_min(jnp.where(leads, index, ids.shape[0]), ids, num=num)
    return index == masked.spread(first, ids, fill=-1)


def step_returns(
    rewards: Float[Array, "N"], traj: Int[Array, "N"], *, turn: Int[Array, "N"], gamma: float
) -> Float[Array, "N"]:
    """G_k = r_k + gamma G_{k+1} along the turns of each trajectory, rows in any order."""
    order = jnp.lexsort((turn, traj))
    sorted_traj = traj[order]
    follows = jnp.append(sorted_traj[1:] == sorted_traj[:-1], False)

    def back(later, step):
        reward, discount = step
        value = reward + discount * later
        return value, value

    discounts = jnp.where(follows, gamma, 0.0)
    _, values = jax.lax.scan(back, jnp.zeros(()), (rewards[order], discounts), reverse=True)
    return jnp.zeros_like(rewards).at[order].set(values)


def return_to_go(
    x: Float[Array, "N R"], mask: Bool[Array, "N R"], *, gamma: float, normalise: bool
) -> Float[Array, "N R"]:
    """S_t = sum over u >= t in the row of gamma^(u-t) m_u x_u, 0 off the mask.

    With `normalise`, over max(sum of gamma^(u-t) m_u, 1). As in the released code, which sums in a
    loop that a masked token resets for gamma < 1 but calls a plain cumulative sum for gamma = 1: if
    the mask has a hole, tokens before it get no credit from tokens after it, unless gamma is 1.
    """
    kept = jnp.where(mask, x, 0.0)
    total = _discounted(kept, mask, gamma)
    if normalise:
        total = total / jnp.maximum(_discounted(mask.astype(x.dtype), mask, gamma), 1.0)
    return jnp.where(mask, total, 0.0)


def _discounted(
    x: Float[Array, "N R"], mask: Bool[Array, "N R"], gamma: float
) -> Float[Array, "N R"]:
    if gamma == 1.0:
        return jnp.cumsum(x[:, ::-1], axis=1)[:, ::-1]

    def back(later, column):
        value, inside = column
        total = value + gamma * later
        return jnp.where(inside, total, 0.0), total

    _, totals = jax.lax.scan(back, jnp.zeros_like(x[:, 0]), (x.T, mask.T), reverse=True)
    return totals.T


def gigpo(
    scores: Float[Array, "N"],
    step_scores: Float[Array, "N"],
    *,
    traj: Int[Array, "N"],
    group: Int[Array, "B"],
    anchor: Int[Array, "N"],
    cfg: RewardConfig,
) -> Float[Array, "N"]:
    """GiGPO (arXiv 2505.10978): A = E + gigpo_weight * S per row.

    E is `group_relative` on the episode scores. S compares the step scores of rows that share a
    group and an anchor (identical observation): minus their mean, over deviation + eps if scaled;
    0 for a row alone in its cluster.

    Args:
      scores: episode score of each row, see `row_scores`.
      step_scores: discounted step return of each row (`step_returns`), minus its own penalty.
      traj: trajectory of each row, B on padding rows.
      group: group of each trajectory, ids below B.
      anchor: id of the observation the row answered.
      cfg: convention and scaling of E, scaling and weight of S.
    """
    num = traj.shape[0]
    row_group = masked.spread(group, traj, fill=group.shape[0])
    cluster = jnp.where(traj < group.shape[0], _pair_ids(row_group, anchor), num)
    step = masked.segment_centre(step_scores, cluster, samples=cluster, num=num)
    if cfg.scale:
        std = masked.segment_std(step_scores, cluster, num=num)
        step = step / (masked.spread(std, cluster, fill=0.0) + cfg.eps)
    step = jnp.where(cluster < num, step, 0.0)
    return group_relative(scores, traj, group=group, cfg=cfg) + cfg.gigpo_weight * step


def _pair_ids(a: Int[Array, "N"], b: Int[Array, "N"]) -> Int[Array, "N"]:
    """Dense ids 0.. of the distinct pairs (a, b)."""
    order = jnp.lexsort((b, a))
    a_sorted, b_sorted = a[order], b[order]
    new = (a_sorted[1:] != a_sorted[:-1]) | (b_sorted[1:] != b_sorted[:-1])
    dense = jnp.cumsum(jnp.append(jnp.zeros(1, bool), new))
    return jnp.zeros_like(dense).at[order].set(dense)
