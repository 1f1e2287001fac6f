"""What an algorithm is, and the common form of its advantage.

    A_t = kappa(s) * turn_weight * token_signal + rho(s) * reward_advantage

An algorithm fills the places of the form and calls `hybrid`; see `Algorithm` for the contract.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from atod_jax.core import diagnostics, masked
from atod_jax.records import RolloutPlan
from atod_jax.types import Mean, Signal, TokenStats, TurnBatch


@dataclasses.dataclass(frozen=True)
class TeacherContext:
    """Where teacher log-probabilities come from."""

    self_teacher: bool = False  # the student's own present weights instead of teacher.path
    privileged: bool = False  # its prompts begin with a demonstration of the task
    exact_kl: bool = False  # the loss needs its whole distribution, not only the sampled token's


class Step(NamedTuple):
    """One iteration as an algorithm sees it: all of its experience, and who said what of it."""

    batch: TurnBatch
    # of the policy before the update; an algorithm with scores_student=False gets None
    student: TokenStats
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
    scores_student: bool = True  # False: it does not read `Step.student`, so nothing is scored


# ------------------------------------------------------------------- the terms of the advantage


def teacher_of(step: Step) -> TokenStats:
    """The statistics of the teacher.

    Raises:
      ValueError: there is no teacher.
    """
    if step.teacher is None:
        raise ValueError("teacher=None: the algorithm distils; score the batch with a teacher")
    return step.teacher


def log_gap(step: Step) -> Float[Array, "N R"]:
    """The plain token signal lpT - lpS on action tokens, nats: minus the sampled reverse KL.

    Raises:
      ValueError: there is no teacher.
    """
    gap = teacher_of(step).logp - step.student.logp
    return jnp.where(step.batch.rows.action_mask, gap, 0.0)


def hybrid(
    step: Step,
    *,
    distill: Float[Array, "N R"] | None = None,
    reward: Float[Array, "N"] | None = None,
    exact_kl: Float[Array, "N R"] | None = None,
    report: dict[str, Mean] | None = None,
) -> Signal:
    """The Signal of advantage = distill + reward, both already times their coefficients.

    Args:
      step: one iteration; a teacher adds diagnostics.
      distill: kappa * weight * token signal; None = nothing.
      reward: rho * advantage of each row; None = nothing.
      exact_kl: kappa * weight, where the exact KL replaces the sampled distillation term.
      report: further diagnostics.
    """
    rows, student = step.batch.rows, step.student
    mask = rows.action_mask
    opd, rl = mixed_terms(distill, reward, action_mask=mask)
    means = diagnostics.of_student(step.batch, student) | (report or {})
    if step.teacher is not None:
        means |= diagnostics.of_teacher(rows, student, teacher=step.teacher)
    if distill is not None:
        means["opd/abs_mean"] = masked.padded_mean(jnp.abs(opd), mask)
    if reward is not None:
        means["rl/abs_mean"] = diagnostics.of_rows(jnp.abs(reward), mask)
    return Signal(
        advantage=opd + rl,
        old_logp=student.logp,
        kl_weight=exact_kl if exact_kl is None else jnp.where(mask, exact_kl, 0.0),
        distill=None if distill is None else opd,
        diagnostics=means,
    )


def mixed_terms(
    distill: Float[Array, "N R"] | None,
    reward: Float[Array, "N"] | None,
    *,
    action_mask: Bool[Array, "N R"],
) -> tuple[Float[Array, "N R"], Float[Array, "N R"]]:
    """The two terms of the advantage as token streams, 0 off the mask."""
    zero = jnp.zeros(action_mask.shape)
    opd = zero if distill is None else jnp.where(action_mask, distill, 0.0)
    rl = zero if reward is None else jnp.where(action_mask, reward[:, None], 0.0)
    return opd, rl


def equal_weights(cfg: Any, step: Step) -> Float[Array, "N"]:
    """The teacher counts the same on every turn."""
    return jnp.ones(step.batch.rows.traj.shape)


def update_number(number: Int[Array, ""] | int) -> Any:
    """s of the formulas, from the updates done so far: the first update has number 1."""
    return number + 1
