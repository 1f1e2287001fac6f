"""Episodes played by all processes of a run together."""

import dataclasses
from collections.abc import Callable, Sequence

from atod_jax import cluster
from atod_jax.envs.pool import EnvPool
from atod_jax.episodes import rollout
from atod_jax.episodes.render import Renderer
from atod_jax.records import RolloutPlan, Task, Trajectory


def play_shared(
    sampler: rollout.Sampler,
    renderer: Renderer,
    pool: EnvPool,
    *,
    tasks: Sequence[Task],
    group_size: int,
    plan: RolloutPlan,
    demonstrations: Sequence[Sequence[str]] = (),
    contexts: Sequence[str] = (),
    between_turns: Callable[[], None] = lambda: None,
    ended: Callable[[int], None] = lambda count: None,
    at_once: int = 0,
) -> list[Trajectory]:
    """`rollout.collect`, each process playing its share of the tasks; all get all episodes.

    An episode draws the numbers that it would draw in a single process; `at_once` is of them all,
    and what `ended` is told is this process's count, times the number of processes.
    """
    mine = cluster.share_of(len(tasks))
    episodes = rollout.collect(
        sampler,
        renderer,
        pool,
        tasks=tasks[mine],
        group_size=group_size,
        plan=plan,
        demonstrations=demonstrations[mine],
        contexts=contexts[mine],
        between_turns=between_turns,
        ended=lambda count: ended(min(len(tasks) * group_size, count * cluster.count())),
        first_row=mine.start * group_size,
        at_once=-(-at_once // cluster.count()),
    )
    return cluster.gather([dataclasses.replace(e, group=mine.start + e.group) for e in episodes])
