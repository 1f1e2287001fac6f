"""What algorithms share: the common form of their advantage, and the hooks with their defaults.

    A_t = kappa(s) * turn_weight * token_signal + rho(s) * RL_estimate

An algorithm is a module with `Config`, `needs_teacher(cfg, step)` and `signal(...)`, which fills
the three places of the form and calls `hybrid`. Two more hooks act before the batch exists, and a
module defines them only if it wants something else than the defaults here:
    rollout_plan(cfg, step, max_turns)   how far episodes go and what is replayed to the student
    teacher_context(cfg)                 who the teacher is and what only it gets to read
"""

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from atod_jax.core import diagnostics, masked
from atod_jax.core.advantages import GroupConfig, gigpo, row_advantages, row_scores, step_returns
from atod_jax.records import RolloutPlan
from atod_jax.types import Mean, Signal, TokenStats, TurnBatch

ESTIMATORS = ("grpo", "gigpo")


@dataclasses.dataclass(frozen=True)
class TeacherContext:
    """Where teacher log-probabilities come from."""

    self_teacher: bool = False  # the student's own present weights instead of teacher.path
    privileged: bool = False  # its prompts begin with a demonstration of the task
    states: bool = False  # its final states are kept, for an exact KL in the loss


class Step(NamedTuple):
    """One iteration as an algorithm sees it: all of its experience, and who said what of it."""

    batch: TurnBatch
    student: TokenStats  # of the policy before the update
    teacher: TokenStats | None  # on the same tokens; None only where `needs_teacher` is false
    number: Int[Array, ""] | int  # updates done so far


def never(cfg: Any, step: int) -> bool:
    """No teacher."""
    return False


def always(cfg: Any, step: int) -> bool:
    """A teacher at every step."""
    return True


def whole_episodes(cfg: Any, step: int, max_turns: int) -> RolloutPlan:
    """The student plays every episode from its start, up to the limit of the environment."""
    return RolloutPlan(max_turns=max_turns)


def frozen_teacher(cfg: Any) -> TeacherContext:
    """A frozen teacher that reads what the student reads."""
    return TeacherContext()


class Algorithm(NamedTuple):
    """One algorithm; the whole contract. Every function takes the algorithm's own options first.

    It is a module with `ALGORITHM = Algorithm(...)`: a file beside this one, an entry point of the
    group `atod_jax.algorithms`, or any module that `algorithm.name` names.
    """

    Config: type  # a frozen dataclass with a default for every field; algorithm.<name>.<field>
    signal: Callable[[Any, Step], Signal]  # jitted: what the learner executes
    needs_teacher: Callable[[Any, int], bool] = never  # (cfg, step), on the host
    # (cfg, step, turn limit) -> how far episodes go and what is replayed to the student
    rollout_plan: Callable[[Any, int, int], RolloutPlan] = whole_episodes
    teacher: Callable[[Any], TeacherContext] = frozen_teacher  # who it is, what only it reads
    # (cfg, step) -> weight of the teacher's signal on every row, for transcripts; None: there is
    # no such signal
    turn_weights: Callable[[Any, Step], Float[Array, "N"]] | None = None
    supervised: bool = False  # it learns from turns of the expert, not from what the student plays


def rollout_plan(cfg: Any, step: int, max_turns: int) -> RolloutPlan:
    """To be removed: the old hook."""
    return whole_episodes(cfg, step, max_turns)


def teacher_context(cfg: Any) -> TeacherContext:
    """To be removed: the old hook."""
    return TeacherContext()


def hook(module: ModuleType, name: str) -> Callable[..., Any]:
    """To be removed: a module's own version of a hook, or the default."""
    return vars(module).get(name, globals()[name])


# ------------------------------------------------------------------- the three terms


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """The RL estimate; every algorithm with a reward term has these options.

    Defaults are those of the released runs for ALFWorld and WebShop.
    """

    estimator: str = "grpo"  # grpo | gigpo (compares also turns that saw the same observation)
    statistics: str = "turns"  # of a group: over its turn-rows | over its "trajectories"
    scale: bool = True  # divide by the group's standard deviation
    invalid_penalty: float = 0.1  # off the score of a row whose action is invalid
    eps: float = 1e-6  # added to the deviation
    gigpo_gamma: float = 0.95  # discount of the return of a turn
    gigpo_weight: float = 1.0  # of the per-turn term

    def __post_init__(self):
        if self.estimator not in ESTIMATORS:
            raise ValueError(f"estimator={self.estimator!r}: choose from {', '.join(ESTIMATORS)}")
        _ = self.group  # building it checks the values

    @property
    def group(self) -> GroupConfig:
        """Options of the group statistics."""
        return GroupConfig(
            statistics=self.statistics,
            scale=self.scale,
            invalid_penalty=self.invalid_penalty,
            eps=self.eps,
        )


def rl_estimate(batch: TurnBatch, *, cfg: RewardConfig) -> Float[Array, "N"]:
    """The advantage of every row from rewards alone."""
    if cfg.estimator == "grpo":
        return row_advantages(batch, cfg=cfg.group)
    rows, penalty = batch.rows, cfg.invalid_penalty
    returns = step_returns(rows.reward, rows.traj, rows.turn, gamma=cfg.gigpo_gamma)
    own = jnp.arange(returns.shape[0])  # a turn's return is its own, as a trajectory's is its rows'
    return gigpo(
        row_scores(batch.returns, rows.traj, rows.action_valid, invalid_penalty=penalty),
        row_scores(returns, own, rows.action_valid, invalid_penalty=penalty),
        rows.traj,
        batch.group,
        anchor=rows.anchor,
        step_weight=cfg.gigpo_weight,
        cfg=cfg.group,
    )


def log_gap(
    batch: TurnBatch, student: TokenStats, teacher: TokenStats | None, *, algorithm: str
) -> Float[Array, "N R"]:
    """The plain token signal lpT - lpS on action tokens, nats: minus the sampled reverse KL.

    Raises:
      ValueError: no teacher.
    """
    if teacher is None:
        raise ValueError(f"{algorithm} has teacher=None: score the batch with a teacher first")
    return jnp.where(batch.rows.action_mask, teacher.logp - student.logp, 0.0)


def hybrid(
    batch: TurnBatch,
    student: TokenStats,
    teacher: TokenStats | None,
    *,
    distill: Float[Array, "N R"] | None = None,
    reward: Float[Array, "N"] | None = None,
    exact_kl: Float[Array, "N R"] | None = None,
    report: dict[str, Mean] | None = None,
) -> Signal:
    """The Signal of advantage = distill + reward, both already times their coefficients.

    Args:
      batch: one step of experience.
      student: of the policy before the update.
      teacher: adds diagnostics; with `exact_kl` its states go along.
      distill: kappa * weight * token signal; None = nothing.
      reward: rho * RL estimate of each row; None = nothing.
      exact_kl: kappa * weight, where the exact KL replaces the sampled distillation term.
      report: further diagnostics.
    """
    mask = batch.rows.action_mask
    opd, rl = mixed_terms(distill, reward, mask)
    means = diagnostics.of_student(batch, student) | (report or {})
    if teacher is not None:
        means |= diagnostics.of_teacher(batch.rows, student, teacher)
    if distill is not None:
        means["opd/abs_mean"] = masked.padded_mean(jnp.abs(opd), mask)
    if reward is not None:
        means["rl/abs_mean"] = diagnostics.of_rows(jnp.abs(reward), mask)
    return Signal(
        advantage=opd + rl,
        old_logp=student.logp,
        kl_weight=exact_kl if exact_kl is None else jnp.where(mask, exact_kl, 0.0),
        teacher_hidden=None if exact_kl is None else teacher.hidden,
        diagnostics=means,
    )


def mixed_terms(
    distill: Float[Array, "N R"] | None,
    reward: Float[Array, "N"] | None,
    action_mask: Bool[Array, "N R"],
) -> tuple[Float[Array, "N R"], Float[Array, "N R"]]:
    """The two terms of the advantage as token streams, 0 off the mask."""
    zero = jnp.zeros(action_mask.shape)
    opd = zero if distill is None else jnp.where(action_mask, distill, 0.0)
    rl = zero if reward is None else jnp.where(action_mask, reward[:, None], 0.0)
    return opd, rl


def update_number(step: Int[Array, ""] | int) -> Int[Array, ""] | int:
    """s of the formulas: the first update has number 1."""
    return step + 1
