"""ATOD: turn-weighted on-policy distillation annealed into reward (arXiv 2606.27814).

A_t = kappa(s) w_k (lpT_t - lpS_t) + rho(s) A_GRPO. The weights touch the distillation term only.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from atod_jax.core import diagnostics, masked, schedules
from atod_jax.core.advantages import GroupConfig, row_advantages
from atod_jax.core.schedules import AnnealConfig
from atod_jax.core.tdur import TdurConfig, token_weights, turn_signals, turn_weights
from atod_jax.types import Mean, Signal, TokenStats, TurnBatch

WEIGHTINGS = ("tdur", "token", "uniform")


@dataclasses.dataclass(frozen=True)
class Config:
    """Options; the defaults are `preset("released")`."""

    weighting: str = "tdur"  # per turn; ablations: token (per token) | uniform (all 1)
    score: str = "softor"  # softor | divergence_only | entropy_only
    min_turns: int = 3  # shorter trajectories keep weight 1
    min_divergence: float = 0.01  # nats; trajectories below it on every turn keep weight 1
    top_rho: float = 1.0  # share of the turns of a trajectory that keep their weight
    smoothing: float = 0.0  # w <- (1 - smoothing) w + smoothing
    mean_preserving: bool = False  # token-weighted mean weight 1 per trajectory
    anneal: str = "linear"  # linear | constant (ablation, stays at the start values)
    kappa_start: float = 1.0  # of the distillation term
    kappa_end: float = 0.1
    rho_start: float = 1.0  # of the reward term
    rho_end: float = 2.0
    anneal_steps: int = 80  # updates; 0 or less keeps the start values
    statistics: str = "turns"  # of a group: over its turn-rows | over its "trajectories"
    scale: bool = True  # divide by the group's standard deviation
    invalid_penalty: float = 0.1  # off the score of a row whose action is invalid

    def __post_init__(self):
        if self.weighting not in WEIGHTINGS:
            raise ValueError(f"weighting={self.weighting!r}: choose from {', '.join(WEIGHTINGS)}")
        _ = self.tdur, self.schedule, self.group  # building the parts checks their values

    @property
    def tdur(self) -> TdurConfig:
        return TdurConfig(
            score=self.score,
            min_turns=self.min_turns,
            min_divergence=self.min_divergence,
            top_rho=self.top_rho,
            smoothing=self.smoothing,
            mean_preserving=self.mean_preserving,
        )

    @property
    def schedule(self) -> AnnealConfig:
        return AnnealConfig(
            kind=self.anneal,
            kappa_start=self.kappa_start,
            kappa_end=self.kappa_end,
            rho_start=self.rho_start,
            rho_end=self.rho_end,
            steps=self.anneal_steps,
        )

    @property
    def group(self) -> GroupConfig:
        return GroupConfig(
            statistics=self.statistics, scale=self.scale, invalid_penalty=self.invalid_penalty
        )


def preset(name: str) -> Config:
    """Named settings.

    "released": the authors' runs. Trajectories under 3 turns or 0.01 nats keep weight 1, group
    statistics over turn-rows, 0.1 off per invalid action (0.01 in their search task).
    "paper": the equations alone. No guards, statistics over trajectories, no penalty.

    Raises:
      ValueError: any other name.
    """
    presets = {
        "released": Config(),
        "paper": Config(
            min_turns=1, min_divergence=0.0, statistics="trajectories", invalid_penalty=0.0
        ),
    }
    if name not in presets:
        raise ValueError(f"preset {name!r} is unknown; choose from {', '.join(presets)}")
    return presets[name]


def needs_teacher(cfg: Config, step: int) -> bool:
    """False once kappa is 0 at the update of this step, e.g. past the end of a schedule to 0."""
    kappa, _ = schedules.mix(step + 1, cfg=cfg.schedule, xp=np)
    return bool(kappa != 0)


def signal(
    cfg: Config,
    batch: TurnBatch,
    student: TokenStats,
    teacher: TokenStats | None,
    step: Int[Array, ""],
) -> Signal:
    """A_t = kappa(s) w_k (lpT_t - lpS_t) + rho(s) A_GRPO on action tokens, s = step + 1.

    Args:
      cfg: options.
      batch: one step of experience, all of it: weights compare the turns of a trajectory.
      student: of the policy before the update.
      teacher: on the same tokens; None only where `needs_teacher` is false.
      step: updates done so far.

    Raises:
      ValueError: no teacher although the schedule never reaches kappa = 0.
    """
    if teacher is None and needs_teacher(cfg, cfg.anneal_steps):
        raise ValueError("atod has teacher=None but kappa never reaches 0; score with a teacher")
    mask = batch.rows.action_mask
    kappa, rho = schedules.mix(step + 1, cfg=cfg.schedule)
    reward = row_advantages(batch, cfg=cfg.group)
    gap, report = jnp.zeros_like(student.logp), {}
    if teacher is not None:
        gap = weights(cfg, batch, student, teacher) * (teacher.logp - student.logp)
        report = diagnostics.of_teacher(batch.rows, student, teacher)
        report |= _weight_means(batch, turn_table(cfg, batch, student, teacher)["weight"])
    spread = jnp.broadcast_to(reward[:, None], gap.shape)
    opd, rl = mixed_terms(gap, spread, mask, kappa=kappa, rho=rho)
    return Signal(
        advantage=opd + rl,
        ce_weight=jnp.zeros_like(student.logp),
        old_logp=student.logp,
        norm=diagnostics.token_count(batch.rows),
        diagnostics={
            **diagnostics.of_student(batch, student),
            **report,
            "mix/kappa": diagnostics.scalar(kappa),
            "mix/rho": diagnostics.scalar(rho),
            "opd/abs_mean": masked.masked_mean(jnp.abs(opd), mask),
            "rl/abs_mean": masked.masked_mean(jnp.abs(rl), mask),
        },
    )


def mixed_terms(
    gap: Float[Array, "N R"],
    reward: Float[Array, "N R"],
    action_mask: Bool[Array, "N R"],
    *,
    kappa: schedules.Scalar,
    rho: schedules.Scalar,
) -> tuple[Float[Array, "N R"], Float[Array, "N R"]]:
    """(kappa gap, rho reward), 0 off the mask: the two terms whose sum is the advantage."""
    return jnp.where(action_mask, kappa * gap, 0.0), jnp.where(action_mask, rho * reward, 0.0)


def weights(
    cfg: Config, batch: TurnBatch, student: TokenStats, teacher: TokenStats
) -> Float[Array, "N R"]:
    """Weight of the distillation term on every action token; 1 elsewhere."""
    mask = batch.rows.action_mask
    if cfg.weighting == "token":
        return token_weights(
            student.logp,
            teacher.logp,
            mask,
            min_divergence=cfg.min_divergence,
            smoothing=cfg.smoothing,
        )
    per_turn = turn_table(cfg, batch, student, teacher)["weight"]
    return jnp.where(mask, per_turn[:, None], 1.0)


def turn_table(
    cfg: Config, batch: TurnBatch, student: TokenStats, teacher: TokenStats
) -> dict[str, Float[Array, "N"]]:
    """Per row, for transcripts: `divergence` and `uncertainty` (nats) and the `weight`.

    The weight is the row's mean where weights are per token.
    """
    rows = batch.rows
    divergence, uncertainty = turn_signals(student.logp, teacher.logp, rows.action_mask)
    weight = jnp.ones_like(divergence)
    if cfg.weighting == "tdur":
        weight = turn_weights(
            divergence,
            uncertainty,
            rows.traj,
            length=jnp.sum(rows.action_mask, axis=1),
            num_traj=batch.returns.shape[0],
            cfg=cfg.tdur,
        )
    if cfg.weighting == "token":
        weight = masked.row_mean(weights(cfg, batch, student, teacher), rows.action_mask)
    return {"divergence": divergence, "uncertainty": uncertainty, "weight": weight}


def _weight_means(batch: TurnBatch, weight: Float[Array, "N"]) -> dict[str, Mean]:
    real = diagnostics.real_rows(batch)
    return {
        "turn_weight/mean": masked.masked_mean(weight, real),
        "turn_weight/min": diagnostics.scalar(jnp.min(weight, where=real, initial=jnp.inf)),
        "turn_weight/max": diagnostics.scalar(jnp.max(weight, where=real, initial=-jnp.inf)),
    }
