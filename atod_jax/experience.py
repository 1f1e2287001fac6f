"""What one iteration plays: the student, helped as the algorithm's plan says, or the expert."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from atod_jax import assembly, config, demos, rollout
from atod_jax.assembly import Algorithm, Environment, Model
from atod_jax.records import RolloutPlan, Task, Trajectory
from atod_jax.render import demonstration_text
from atod_jax.streams import Stream, key, rng
from atod_jax.tasks import TaskSource

Collect = Callable[[int, Any], list[Trajectory]]  # (step, student's parameters)


def make_collect(
    cfg: ConfigDict,
    mesh: Mesh,
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
    slots = cfg.rollout.tasks * cfg.rollout.group
    policy = assembly.policy(cfg, student, mesh, cfg.sampling.temperature, slots)
    teacher_demonstrates = _teacher_demonstrates(cfg, mesh, env, teacher, between_turns)

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
        trajectories = rollout.collect(
            assembly.actor(policy, params, key(cfg.seed, Stream.rollout, step), slots),
            env.renderer,
            env.pool,
            tasks,
            group_size=cfg.rollout.group,
            plan=plan,
            demonstrations=prefixes,
            contexts=contexts,
            between_turns=between_turns,
        )
        return rollout.whole_groups(trajectories)

    return student_plays


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


def _teacher_demonstrates(
    cfg: ConfigDict,
    mesh: Mesh,
    env: Environment,
    teacher: Model | None,
    between_turns: Callable[[], None],
) -> Callable[[int, Sequence[Task]], list[tuple[str, ...]]]:
    """One episode of the teacher per task; its commands where it won, nothing where it did not."""

    @functools.cache
    def policy():
        assert teacher is not None  # `train.require_teacher` has refused this before
        return assembly.policy(cfg, teacher, mesh, cfg.sampling.temperature, cfg.rollout.tasks)

    def demonstrate(step: int, tasks: Sequence[Task]) -> list[tuple[str, ...]]:
        drawn = key(cfg.seed, Stream.demonstrations, step)
        episodes = rollout.collect(
            assembly.actor(policy(), teacher.params, drawn, cfg.rollout.tasks),
            env.renderer,
            env.pool,
            tasks,
            group_size=1,
            plan=RolloutPlan(max_turns=cfg.env.max_turns),
            between_turns=between_turns,
        )
        return [tuple(t.command for t in e.turns) if e.success else () for e in episodes]

    return demonstrate
