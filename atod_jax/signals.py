"""What the teacher and the reward say at a point of a run, and how noisy the steps from it are.

    python -m atod_jax.signals --checkpoint=runs/a/checkpoints/20
    python -m atod_jax.signals --checkpoint=runs/a --config.rollout.tasks=96 --workdir=runs/signals

The student plays `rollout.tasks` groups anew. One table says for each way to weigh the teacher's
signal, and for the reward, how large it is and how many episodes a step needs for its direction to
be as long as its noise; the other says on which commands disagreement and weights fall. Gradients
of all weights are held fifty times in double precision: for small models.
"""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from atod_jax.algorithms import atod
from atod_jax.algorithms.base import Step, log_gap
from atod_jax.config import Run
from atod_jax.core.advantages import RewardConfig, row_advantages
from atod_jax.core.tdur import TdurConfig, turn_signals
from atod_jax.records import Trajectory, Turn
from atod_jax.results.files import make_folder, write_text
from atod_jax.results.tables import markdown_table
from atod_jax.run import cli
from atod_jax.run.batch import Packed, pack
from atod_jax.run.checkpoints import add_checkpoint, own_config
from atod_jax.run.collectors import make_collector
from atod_jax.run.gradients import Directions, GroupGradient
from atod_jax.run.layouts import layouts_of
from atod_jax.run.models import load_policy, load_teacher
from atod_jax.run.parts import algorithm, environment
from atod_jax.run.scorers import SignalMaker

TDUR, REWARD = "T-DUR", "reward"
WEIGHTS = {
    "uniform": atod.Config(weighting="uniform"),
    TDUR: atod.Config(),
    "T-DUR, mean kept": atod.Config(tdur=TdurConfig(mean_preserving=True)),
    "per token": atod.Config(weighting="token"),
    "other sign": atod.Config(weighting="sod"),
}
STEP = 1_000_000  # whose tasks and draws no run has had
VERB = re.compile(r"\W*(\w+)")


class ByRow(NamedTuple):
    """What is told of every row [N]."""

    d: jax.Array
    h: jax.Array
    weight: jax.Array  # of T-DUR
    uniform: jax.Array  # sum of |gap|
    weighted: jax.Array  # the same with T-DUR


@functools.partial(jax.jit, static_argnames="reward")
def streams(step: Step, reward: RewardConfig) -> list[jax.Array]:
    """Advantages [N, R] of every action token with kappa = rho = 1, of WEIGHTS and of the reward.

    One program: one for every operation, on several devices, can wait for each other forever.
    """
    mask, gap = step.batch.rows.action_mask, log_gap(step)
    said = [atod.token_weights(cfg, step) * gap for cfg in WEIGHTS.values()]
    return [*said, jnp.where(mask, row_advantages(step.batch, cfg=reward)[:, None], 0.0)]


@jax.jit
def by_row(step: Step) -> ByRow:
    """What disagrees, what is unsure, and what T-DUR makes of it."""
    mask = step.batch.rows.action_mask
    d, h = turn_signals(step.student.logp, atod.teacher_of(step).logp, action_mask=mask)
    gap, weight = jnp.abs(log_gap(step)).sum(1), atod.turn_weights(WEIGHTS[TDUR], step)
    return ByRow(d, h, weight, gap, weight * gap)


class Group(NamedTuple):
    """What is told of the episodes of one task."""

    size: np.ndarray  # f64[S], sums of |A| over action tokens
    tokens: int
    turns: list[tuple[str, np.ndarray]]  # kind of command and what `by_row` says, in its order


def signals(cfg: Run, checkpoint: str, workdir: str = "") -> str:
    """Plays and measures; prints both tables and writes them to WORKDIR/signals.md.

    Raises:
      ValueError: there is no teacher, it is not the student who plays, or there are fewer than
        three groups.
    """
    if not cfg.teacher.path or cfg.rollout.source != "student":
        raise ValueError(
            f"teacher.path={cfg.teacher.path!r}, rollout.source={cfg.rollout.source!r}: signals are"
            " those of a teacher on what the student plays; name a run that has both"
        )
    if cfg.rollout.tasks < 3:
        raise ValueError(f"rollout.tasks={cfg.rollout.tasks}: signals need at least 3 groups")
    if workdir:
        make_folder(Path(workdir))
    layouts = layouts_of(cfg)
    with jax.set_mesh(layouts.student.mesh), contextlib.ExitStack() as stack:
        student = load_policy(cfg, checkpoint, layouts)
        teacher = load_teacher(cfg.teacher, student, layouts)
        env = environment(cfg, student.tokens)
        stack.callback(env.pool.close)
        roles: dict = {"student": student, "teacher": teacher, "algorithm": algorithm(cfg)}
        collect = make_collector(cfg, env, between_turns=lambda: None, **roles)
        groups: dict[int, list[Trajectory]] = {}
        for episode in collect(STEP, student.params):
            alone = dataclasses.replace(episode, group=0)
            groups.setdefault(episode.group, []).append(alone)
        gradient, directions = GroupGradient(cfg, student), Directions()
        make_signal = SignalMaker(cfg, layouts.student.mesh, **roles)
        found = []
        for episodes in groups.values():
            packed = pack(cfg, episodes, student=student, step=0)
            scored, _ = make_signal(0, student.params, packed=packed)
            said = streams(scored, getattr(cfg.algorithm.settings, "reward", RewardConfig()))
            directions.add(gradient(packed, said))
            found.append(group_of(packed, episodes, scored=scored, said=said))
    text = page(found, directions, cfg=cfg, checkpoint=checkpoint)
    print(text)
    if workdir:
        write_text(Path(workdir, "signals.md"), text + "\n")
    return text


def group_of(
    packed: Packed,
    episodes: Sequence[Trajectory],
    *,
    scored: Step,
    said: list[jax.Array],
) -> Group:
    """What is told of one group, of which `said` are the streams."""
    size = np.array([np.abs(np.asarray(x)).sum() for x in said])
    table = {name: np.asarray(x) for name, x in by_row(scored)._asdict().items()}
    turns = [
        (kind(turn), np.array([columns[name][k] for name in table]))
        for episode, columns in zip(episodes, packed.by_turn(table, episodes), strict=True)
        for k, turn in enumerate(episode.turns)
    ]
    return Group(size, int(packed.mask.sum()), turns)


def kind(turn: Turn) -> str:
    """The first word of a command."""
    word = VERB.match(turn.command)
    return word[1] if turn.valid and word else "(not valid)"


def page(found: Sequence[Group], directions: Directions, *, cfg: Run, checkpoint: str) -> str:
    """Both tables, with what they say."""
    size = cfg.rollout.group
    head = (
        f"# Signals at {checkpoint or cfg.student.path}\n\n{len(found)} groups of {size} episodes, "
        f"sampled at temperature {cfg.sampling.temperature:g}; teacher {cfg.teacher.path}."
    )
    return "\n\n".join([head, noise_table(found, directions, size), SAID, turn_table(found), FALLS])


SAID = (
    "Size: mean |A| of an action token, with kappa = rho = 1. Episodes: those of a step whose "
    "noise is as long as its direction (the simple noise scale); with fewer the noise is longer. "
    "Cosines are between mean gradients, estimated without the noise that all signals of an "
    "episode share, with their standard errors (groups left out by eighths): an estimate may lie "
    "beyond 1; empty where a direction is lost in noise. All are estimates from these groups. "
    "T-DUR and the others have their default options."
)
FALLS = (
    "d: mean |log p_teacher - log p_student| of a turn's tokens, h: mean -log p_student, both "
    "nats; w: weight of T-DUR. The last two columns say how the teacher's signal, the sum of "
    "w |gap|, is spread over the commands."
)


def noise_table(found: Sequence[Group], directions: Directions, size: int) -> str:
    """How large and how noisy each signal is."""
    scales, (cosines, errors) = directions.noise_scale(), directions.cosines()
    names, most = [*WEIGHTS, REWARD], 10 * size * len(found)
    means = sum(g.size for g in found) / np.array(sum(g.tokens for g in found))
    rows = []
    for s, name in enumerate(names):
        episodes = size * scales[s]
        needed = f"{episodes:.0f}" if episodes < most else f"more than {most}"
        each = (_cosine(cosines[s, of], errors[s, of]) for of in (0, -1))
        rows.append([name, f"{means[s]:.3g}", needed, *each])
    return markdown_table(["signal", "size", "episodes", "cos uniform", "cos reward"], rows)


def _cosine(value: float, error: float) -> str:
    return "" if np.isnan(error) else f"{value:.2f} ± {error:.2f}"


def turn_table(found: Sequence[Group]) -> str:
    """Where disagreement and weights fall, by kind of command."""
    turns = [turn for group in found for turn in group.turns]
    kinds = np.array([name for name, _ in turns])
    table = np.array([values for _, values in turns])  # d, h, w, sums of the teacher's signal
    total, rows = table.sum(0), []
    for name in sorted(set(kinds), key=lambda name: -np.sum(kinds == name)):
        these = table[kinds == name]
        mean, share = these.mean(0), 100 * these.sum(0) / np.maximum(total, 1e-30)
        rows.append([
            name, f"{100 * len(these) / len(turns):.1f}", *(f"{x:.3f}" for x in mean[:3]),
            f"{share[3]:.1f}", f"{share[4]:.1f}",
        ])  # fmt: skip
    every = table.mean(0)
    rows.append(["all", "100", *(f"{x:.3f}" for x in every[:3]), "100", "100"])
    head = ["command", "% of turns", "d", "h", "w", "% of the signal", "% with T-DUR"]
    return markdown_table(head, rows)


def start(cfg: Run, flags: cli.Flags) -> None:
    """Measures what the flags name."""
    signals(cfg, flags.checkpoint, flags.workdir)


PROGRAM = cli.Program("signals", __doc__, start, add_flags=add_checkpoint, fallback=own_config)

if __name__ == "__main__":
    cli.run(PROGRAM)
