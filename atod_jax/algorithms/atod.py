"""ATOD: turn-weighted on-policy distillation annealed into reward (arXiv 2606.27814).

A_t = kappa(s) c_k w_k (lpT_t - lpS_t) + rho(s) A_GRPO. Weights touch the distillation term only.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from atod_jax.algorithms import sod
from atod_jax.algorithms.base import (
    Algorithm,
    Step,
    TeacherContext,
    hybrid,
    log_gap,
    teacher_of,
    update_number,
)
from atod_jax.core import diagnostics, masked, schedules, tdur
from atod_jax.core.advantages import RewardConfig, return_to_go, row_advantages
from atod_jax.core.schedules import AnnealConfig, CurriculumConfig, soft_curriculum
from atod_jax.core.tdur import TdurConfig
from atod_jax.options.field import check, one_of, option, within
from atod_jax.types import Signal

WEIGHTINGS = ("tdur", "token", "uniform", "sod")
TOKEN_SIGNALS = ("gap", "return_to_go", "exact")


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the method; the defaults are `preset("released")`."""

    weighting: str = option(
        "tdur",
        "tdur (per turn); ablations: token (per token) | uniform (all 1) | sod (the weights of "
        "algorithm sod, of the other sign)",
        one_of(*WEIGHTINGS),
    )
    token_quantile: float = option(
        0.98, "weighting=token cuts the uncertainty at this quantile", within(0, 1)
    )
    token_signal: str = option(
        "gap", "gap | return_to_go (within the turn) | exact (KL over the vocabulary in the loss)",
        one_of(*TOKEN_SIGNALS),
    )  # fmt: skip
    rtg_gamma: float = option(0.99, "return_to_go: discount per token", within(0, 1))
    rtg_normalise: bool = option(True, "return_to_go: over its own discounted length")
    tdur: TdurConfig = TdurConfig()  # turn weights; two of its options also serve weighting=token
    curriculum: CurriculumConfig = CurriculumConfig()
    anneal: AnnealConfig = AnnealConfig()
    reward: RewardConfig = RewardConfig()

    def __post_init__(self):
        check(self)


def preset(name: str) -> Config:
    """Named settings.

    "released": the authors' runs. Trajectories under 3 turns or 0.01 nats keep weight 1, group
    statistics over turn-rows, 0.1 off per invalid action (0.01 in their search task).
    "paper": the equations alone. No guards, statistics over trajectories, no penalty.
    `presets.overrides` adds the parts that are not the algorithm's, such as the entropy bonus.

    Raises:
      ValueError: any other name.
    """
    presets = {
        "released": Config(),
        "paper": Config(
            tdur=TdurConfig(min_turns=1, min_divergence=0.0),
            reward=RewardConfig(statistics="trajectories", invalid_penalty=0.0),
        ),
    }
    if name not in presets:
        raise ValueError(f"preset {name!r} is unknown; choose from {', '.join(presets)}")
    return presets[name]


def needs_teacher(cfg: Config, step: int) -> bool:
    """False once kappa is 0 at the update of this step, e.g. past the end of a schedule to 0."""
    return schedules.needs_teacher(update_number(step), cfg=cfg.anneal)


def signal(cfg: Config, step: Step) -> Signal:
    """A_t = kappa(s) c_k w_k (lpT_t - lpS_t) + rho(s) A_GRPO on action tokens, s = number + 1.

    With `token_signal="exact"` the first term leaves the advantage and the loss holds
    kappa(s) c_k w_k KL(student || teacher) over the vocabulary instead.

    Raises:
      ValueError: no teacher although the schedule never reaches kappa = 0.
    """
    kappa, rho = coefficients(cfg, step)
    report = {"mix/kappa": diagnostics.scalar(kappa), "mix/rho": diagnostics.scalar(rho)}
    reward = rho * row_advantages(step.batch, cfg=cfg.reward)
    if step.teacher is None and not needs_teacher(cfg, cfg.anneal.steps):
        zero = jnp.zeros_like(step.student.logp)
        return hybrid(step, distill=zero, reward=reward, report=report)
    gap, weight = log_gap(step), kappa * token_weights(cfg, step)
    report |= diagnostics.of_weights(step.batch, turn_weights(cfg, step))
    if cfg.token_signal == "exact":
        return hybrid(step, exact_kl=weight, reward=reward, report=report)
    if cfg.token_signal == "return_to_go":
        mask = step.batch.rows.action_mask
        gap = return_to_go(gap, mask, gamma=cfg.rtg_gamma, normalise=cfg.rtg_normalise)
    return hybrid(step, distill=weight * gap, reward=reward, report=report)


def coefficients(cfg: Config, step: Step) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(kappa, rho) at an update; the adaptive schedule looks at the gap of this batch."""
    gap = jnp.zeros(())  # without a teacher there is nothing left to distil
    if step.teacher is not None:
        mean = masked.masked_mean(jnp.abs(log_gap(step)), step.batch.rows.action_mask)
        gap = mean.total / jnp.maximum(mean.weight, 1.0)
    return schedules.mix(update_number(step.number), cfg=cfg.anneal, gap=gap)


def token_weights(cfg: Config, step: Step) -> Float[Array, "N R"]:
    """Weight of the distillation term on every action token, curriculum included."""
    rows = step.batch.rows
    if cfg.weighting == "token":
        weight = _per_token(cfg, step)
    else:
        weight = jnp.where(rows.action_mask, turn_weights(cfg, step)[:, None], 1.0)
    if cfg.curriculum.enabled:
        update = update_number(step.number)
        weight = weight * soft_curriculum(update, rows.turn, cfg=cfg.curriculum)[:, None]
    return weight


def turn_weights(cfg: Config, step: Step) -> Float[Array, "N"]:
    """w_k of every row without the curriculum; the row's mean where weights are per token."""
    rows = step.batch.rows
    if cfg.weighting == "uniform":
        return jnp.ones(rows.traj.shape)
    if cfg.weighting == "token":
        return masked.row_mean(_per_token(cfg, step), rows.action_mask)
    if cfg.weighting == "sod":
        return sod.turn_weights(sod.Config(), step)
    divergence, uncertainty = tdur.turn_signals(
        step.student.logp, teacher_of(step).logp, action_mask=rows.action_mask
    )
    return tdur.turn_weights(
        divergence,
        uncertainty,
        traj=rows.traj,
        length=masked.row_count(rows.action_mask),
        num_traj=step.batch.returns.shape[0],
        cfg=cfg.tdur,
    )


def _per_token(cfg: Config, step: Step) -> Float[Array, "N R"]:
    return tdur.token_weights(
        step.student.logp,
        teacher_of(step).logp,
        action_mask=step.batch.rows.action_mask,
        min_divergence=cfg.tdur.min_divergence,
        smoothing=cfg.tdur.smoothing,
        quantile=cfg.token_quantile,
    )


ALGORITHM = Algorithm(
    Config,
    signal,
    needs_teacher=needs_teacher,
    teacher=lambda cfg: TeacherContext(exact_kl=cfg.token_signal == "exact"),
    turn_weights=turn_weights,
)
