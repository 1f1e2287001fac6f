"""ATOD: turn-weighted on-policy distillation annealed into reward (arXiv 2606.27814).

A_t = kappa(s) c_k w_k (lpT_t - lpS_t) + rho(s) A_GRPO. Weights touch the distillation term only.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from atod_jax.algorithms import base
from atod_jax.core import diagnostics, masked, schedules
from atod_jax.core.advantages import return_to_go
from atod_jax.core.schedules import AnnealConfig, CurriculumConfig, soft_curriculum
from atod_jax.core.tdur import TdurConfig, token_weights, turn_signals, turn_weights
from atod_jax.types import Signal, TokenStats, TurnBatch

WEIGHTINGS = ("tdur", "token", "uniform")
TOKEN_SIGNALS = ("gap", "return_to_go", "exact")


@dataclasses.dataclass(frozen=True)
class Config(base.RewardConfig):
    """Options beside those of the reward term; the defaults are `preset("released")`."""

    weighting: str = "tdur"  # per turn; ablations: token (per token) | uniform (all 1)
    score: str = "softor"  # softor | divergence_only | entropy_only
    min_turns: int = 3  # shorter trajectories keep weight 1
    min_divergence: float = 0.01  # nats; trajectories below it on every turn keep weight 1
    top_rho: float = 1.0  # share of the turns of a trajectory that keep their weight
    smoothing: float = 0.0  # w <- (1 - smoothing) w + smoothing
    mean_preserving: bool = False  # token-weighted mean weight 1 per trajectory
    ratio_min: float = 0.5  # with mean_preserving: bounds of a weight over the mean weight
    ratio_max: float = 2.0
    token_quantile: float = 0.98  # weighting=token cuts uncertainty at this quantile
    token_signal: str = "gap"  # gap | return_to_go (within the turn) | exact (full KL in the loss)
    rtg_gamma: float = 0.99  # discount of return_to_go
    rtg_normalise: bool = True  # return_to_go over its own discounted length
    curriculum: bool = False  # soft curriculum: later turns are distilled later
    curriculum_updates: float = 6.0  # its window grows by one turn every so many updates
    curriculum_softness: float = 1.0  # turns; of the window's edge
    curriculum_bias: float = 0.5  # turns; moves the edge
    curriculum_min: float = 0.05  # smallest and largest weight
    curriculum_max: float = 1.0
    curriculum_warmup: int = 0  # updates with the largest weight on every turn
    anneal: str = "linear"  # linear | cosine | adaptive (to the gap) | constant (start values)
    kappa_start: float = 1.0  # of the distillation term
    kappa_end: float = 0.1
    rho_start: float = 1.0  # of the reward term
    rho_end: float = 2.0
    anneal_steps: int = 80  # updates; 0 or less keeps the start values
    adaptive_gap: float = 0.5  # nats; where the adaptive schedule begins to anneal

    def __post_init__(self):
        for name, value, choices in (
            ("weighting", self.weighting, WEIGHTINGS),
            ("token_signal", self.token_signal, TOKEN_SIGNALS),
        ):
            if value not in choices:
                raise ValueError(f"{name}={value!r}: choose from {', '.join(choices)}")
        super().__post_init__()
        _ = self.tdur, self.schedule  # building the parts checks their values

    @property
    def tdur(self) -> TdurConfig:
        """Options of the turn weights."""
        return TdurConfig(
            score=self.score,
            min_turns=self.min_turns,
            min_divergence=self.min_divergence,
            top_rho=self.top_rho,
            smoothing=self.smoothing,
            mean_preserving=self.mean_preserving,
            ratio_min=self.ratio_min,
            ratio_max=self.ratio_max,
        )

    @property
    def window(self) -> CurriculumConfig:
        """Options of the soft curriculum."""
        return CurriculumConfig(
            updates_per_turn=self.curriculum_updates,
            softness=self.curriculum_softness,
            bias=self.curriculum_bias,
            weight_min=self.curriculum_min,
            weight_max=self.curriculum_max,
            warmup=self.curriculum_warmup,
        )

    @property
    def schedule(self) -> AnnealConfig:
        """Options of kappa and rho."""
        return AnnealConfig(
            kind=self.anneal,
            kappa_start=self.kappa_start,
            kappa_end=self.kappa_end,
            rho_start=self.rho_start,
            rho_end=self.rho_end,
            steps=self.anneal_steps,
            gap=self.adaptive_gap,
        )


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
            min_turns=1, min_divergence=0.0, statistics="trajectories", invalid_penalty=0.0
        ),
    }
    if name not in presets:
        raise ValueError(f"preset {name!r} is unknown; choose from {', '.join(presets)}")
    return presets[name]


def needs_teacher(cfg: Config, step: int) -> bool:
    """False once kappa is 0 at the update of this step, e.g. past the end of a schedule to 0."""
    return schedules.needs_teacher(base.update_number(step), cfg=cfg.schedule)


def teacher_context(cfg: Config) -> base.TeacherContext:
    """An exact KL needs the teacher's whole distribution."""
    return base.TeacherContext(states=cfg.token_signal == "exact")


def signal(
    cfg: Config,
    batch: TurnBatch,
    student: TokenStats,
    teacher: TokenStats | None,
    step: Int[Array, ""],
) -> Signal:
    """A_t = kappa(s) c_k w_k (lpT_t - lpS_t) + rho(s) A_GRPO on action tokens, s = step + 1.

    With `token_signal="exact"` the first term leaves the advantage and the loss holds
    kappa(s) c_k w_k KL(student || teacher) over the vocabulary instead.

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
    update = base.update_number(step)
    kappa, rho = coefficients(cfg, batch, student, teacher, update)
    report = {"mix/kappa": diagnostics.scalar(kappa), "mix/rho": diagnostics.scalar(rho)}
    reward = rho * base.rl_estimate(batch, cfg=cfg)
    if teacher is None:
        return base.hybrid(
            batch,
            student,
            None,
            distill=jnp.zeros_like(student.logp),
            reward=reward,
            report=report,
        )
    weight = kappa * weights(cfg, batch, student, teacher, update)
    table = turn_table(cfg, batch, student, teacher)
    exact = cfg.token_signal == "exact"
    return base.hybrid(
        batch,
        student,
        teacher,
        distill=None if exact else weight * token_signal(cfg, batch, student, teacher),
        exact_kl=weight if exact else None,
        reward=reward,
        report=report | diagnostics.of_weights(batch, table["weight"]),
    )


def coefficients(
    cfg: Config,
    batch: TurnBatch,
    student: TokenStats,
    teacher: TokenStats | None,
    update: Int[Array, ""],
) -> tuple[schedules.Scalar, schedules.Scalar]:
    """(kappa, rho) at an update; the adaptive schedule looks at the gap of this batch."""
    gap = None
    if teacher is not None:
        distance = jnp.abs(teacher.logp - student.logp)
        mean = masked.masked_mean(distance, batch.rows.action_mask)
        gap = mean.total / jnp.maximum(mean.weight, 1.0)
    elif cfg.anneal == "adaptive":  # without a teacher there is nothing left to distil
        gap = jnp.zeros(())
    return schedules.mix(update, cfg=cfg.schedule, gap=gap)


def token_signal(
    cfg: Config, batch: TurnBatch, student: TokenStats, teacher: TokenStats
) -> Float[Array, "N R"]:
    """lpT - lpS of every action token, or its discounted sum over the rest of the turn."""
    gap = base.log_gap(batch, student, teacher, algorithm="atod")
    if cfg.token_signal == "gap":
        return gap
    return return_to_go(
        gap, batch.rows.action_mask, gamma=cfg.rtg_gamma, normalise=cfg.rtg_normalise
    )


def weights(
    cfg: Config,
    batch: TurnBatch,
    student: TokenStats,
    teacher: TokenStats,
    update: Int[Array, ""],
) -> Float[Array, "N R"]:
    """Weight of the distillation term on every action token, curriculum included."""
    if cfg.weighting == "token":
        weight = _per_token(cfg, batch, student, teacher)
    else:
        per_turn = turn_table(cfg, batch, student, teacher)["weight"]
        weight = jnp.where(batch.rows.action_mask, per_turn[:, None], 1.0)
    if cfg.curriculum:
        weight = weight * soft_curriculum(update, batch.rows.turn, cfg=cfg.window)[:, None]
    return weight


def turn_table(
    cfg: Config, batch: TurnBatch, student: TokenStats, teacher: TokenStats
) -> dict[str, Float[Array, "N"]]:
    """Per row, for transcripts: `divergence` and `uncertainty` (nats) and the `weight`.

    The weight is the row's mean where weights are per token; without the curriculum.
    """
    rows = batch.rows
    divergence, uncertainty = turn_signals(student.logp, teacher.logp, rows.action_mask)
    weight = jnp.ones_like(divergence)
    if cfg.weighting == "tdur":
        weight = turn_weights(
            divergence,
            uncertainty,
            rows.traj,
            length=masked.row_count(rows.action_mask),
            num_traj=batch.returns.shape[0],
            cfg=cfg.tdur,
        )
    if cfg.weighting == "token":
        weight = masked.row_mean(_per_token(cfg, batch, student, teacher), rows.action_mask)
    return {"divergence": divergence, "uncertainty": uncertainty, "weight": weight}


def _per_token(
    cfg: Config, batch: TurnBatch, student: TokenStats, teacher: TokenStats
) -> Float[Array, "N R"]:
    return token_weights(
        student.logp,
        teacher.logp,
        batch.rows.action_mask,
        min_divergence=cfg.min_divergence,
        smoothing=cfg.smoothing,
        quantile=cfg.token_quantile,
    )
