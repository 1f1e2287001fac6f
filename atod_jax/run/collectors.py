"""What one iteration learns from: the student plays, helped as the algorithm's plan says, or the
expert plays, or the episodes of an earlier run are read."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict

from atod_jax import cluster, config
from atod_jax.episodes import demos, rollout
from atod_jax.episodes.render import demonstration_text
from atod_jax.episodes.store import Recording
from atod_jax.episodes.tasks import TaskSource
from atod_jax.records import RolloutPlan, Task, Trajectory
from atod_jax.run import assembly
from atod_jax.run.assembly import Algorithm, Environment, Model
from atod_jax.streams import Stream, key, rng

Collect = Callable[[int, Any], list[Trajectory]]  # (step, student's parameters)


def make_collect(
    cfg: ConfigDict,
    env: Environment,
    source: TaskSource,
    student: Model,
    teacher: Model | None,
    algorithm: Algorithm,
    between_turns: Callable[[], None],
) -> Collect:
    """`collect(step, params)`: the experience of one iteration, a function of nothing else."""
    if cfg.rollout.source == "expert":
        return _expert_plays(cfg, env, source, between_turns)
    if cfg.rollout.source == "recorded":
        return _recorded(cfg, student, between_turns)
    slots = cfg.rollout.tasks * cfg.rollout.group
    policy = assembly.policy(cfg, student, cfg.sampling.temperature, slots)
    teacher_demonstrates = _teacher_demonstrates(cfg, env, teacher, between_turns)

    def demonstrations(step: int, who: str, tasks: Sequence[Task]) -> list[tuple[str, ...]]:
        if who == "teacher":
            return teacher_demonstrates(step, tasks)
        return [env.module.demonstration(env.settings, t, cfg.env.max_turns) for t in tasks]

    def student_plays(step: int, params: Any) -> list[Trajectory]:
        tasks = source.batch(step, cfg.rollout.tasks)
        plan = algorithm.rollout_plan(step, cfg.env.max_turns)
        prefixes = demonstrations(step, plan.prefix_by, tasks) if plan.prefix_by else ()
        contexts = ()
        if algorithm.context.privileged:
            contexts = [demonstration_text(d) for d in demonstrations(step, "expert", tasks)]
        playing = assembly.to_play(student, params)
        trajectories = play_shared(
            assembly.actor(policy, playing, key(cfg.seed, Stream.rollout, step), slots),
            env,
            tasks,
            group_size=cfg.rollout.group,
            plan=plan,
            demonstrations=prefixes,
            contexts=contexts,
            between_turns=between_turns,
        )
        return rollout.whole_groups(trajectories)

    return student_plays


def play_shared(
    act: rollout.Act,
    env: Environment,
    tasks: Sequence[Task],
    *,
    group_size: int,
    plan: RolloutPlan,
    demonstrations: Sequence[Sequence[str]] = (),
    contexts: Sequence[str] = (),
    between_turns: Callable[[], None] = lambda: None,
) -> list[Trajectory]:
    """`rollout.collect`, each process playing its share of the tasks; all get all episodes.

    A slot draws the numbers that it would draw in a single process.
    """
    mine = cluster.share_of(len(tasks))
    first = mine.start * group_size
    episodes = rollout.collect(
        lambda prompts, slots, turn: act(prompts, [first + slot for slot in slots], turn),
        env.renderer,
        env.pool,
        tasks[mine],
        group_size=group_size,
        plan=plan,
        demonstrations=demonstrations[mine],
        contexts=contexts[mine],
        between_turns=between_turns,
        anyone=cluster.anyone,
    )
    return cluster.gather([dataclasses.replace(e, group=mine.start + e.group) for e in episodes])


def _expert_plays(
    cfg: ConfigDict, env: Environment, source: TaskSource, between_turns: Callable[[], None]
) -> Collect:
    slots = cfg.rollout.tasks * cfg.rollout.group
    demo_cfg = config.section(demos.DemoConfig, cfg.demos)

    def collect(step: int, params: Any) -> list[Trajectory]:
        trajectories = demos.collect_demos(
            env.module.expert,
            env.renderer,
            env.pool,
            source.batch(step, slots),
            max_turns=cfg.env.max_turns,
            cfg=demo_cfg,
            rng=rng(cfg.seed, Stream.demonstrations, step),
            between_turns=between_turns,
        )
        return rollout.whole_groups(trajectories)

    return collect


def _recorded(cfg: ConfigDict, student: Model, between_turns: Callable[[], None]) -> Collect:
    recording = Recording(cfg.rollout.episodes)
    require_tokenizer(recording, student)
    missing = sorted(set(range(cfg.total_steps)) - set(recording.steps))
    if missing:
        raise ValueError(
            f"total_steps={cfg.total_steps}: {recording.folder} has no episodes of step "
            f"{missing[0]}; set total_steps={missing[0]} or record a longer run"
        )

    def collect(step: int, params: Any) -> list[Trajectory]:
        between_turns()
        return recording.read(step)[0]

    return collect


def require_tokenizer(recording: Recording, student: Model) -> None:
    """Ids mean something to the tokenizer that made them only.

    Raises:
      ValueError: the student has another one.
    """
    if recording.tokenizer != assembly.tokenizer_digest(student.tokenizer):
        raise ValueError(
            f"{recording.folder} was recorded with another tokenizer than that of the student "
            f"({student.path}); use the student.path of that run, or record the episodes again"
        )


def _teacher_demonstrates(
    cfg: ConfigDict,
    env: Environment,
    teacher: Model | None,
    between_turns: Callable[[], None],
) -> Callable[[int, Sequence[Task]], list[tuple[str, ...]]]:
    """One episode of the teacher per task; its commands where it won, nothing where it did not."""

    @functools.cache
    def policy():
        assert teacher is not None  # `train.require_teacher` has refused this before
        return assembly.policy(cfg, teacher, cfg.sampling.temperature, cfg.rollout.tasks)

    def demonstrate(step: int, tasks: Sequence[Task]) -> list[tuple[str, ...]]:
        drawn = key(cfg.seed, Stream.demonstrations, step)
        episodes = play_shared(
            assembly.actor(policy(), teacher.params, drawn, cfg.rollout.tasks),
            env,
            tasks,
            group_size=1,
            plan=RolloutPlan(max_turns=cfg.env.max_turns),
            between_turns=between_turns,
        )
        return [tuple(t.command for t in e.turns) if e.success else () for e in episodes]

    return demonstrate
