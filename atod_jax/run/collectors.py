"""What one iteration learns from: the student plays, helped as the algorithm's plan says, or the
expert plays, or the episodes of an earlier run are read.

A collector is called with (step, the student's parameters); its episodes depend on nothing else.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from atod_jax.config.reading import algorithm_of
from atod_jax.config.sections import Run
from atod_jax.device.policy import Policy
from atod_jax.episodes import demos, rollout
from atod_jax.episodes.recordings import EpisodeReader
from atod_jax.episodes.render import demonstration_text
from atod_jax.episodes.shared import play_shared
from atod_jax.episodes.tasks import TaskSource
from atod_jax.episodes.tokens import tokenizer_digest
from atod_jax.records import RolloutPlan, Task, Trajectory
from atod_jax.run.models import Model, to_sampling
from atod_jax.run.parts import Algorithm, Environment, policy
from atod_jax.streams import Stream, key, rng

Commands = tuple[str, ...]
Playing = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


class Collector(Protocol):
    """Where episodes come from."""

    @property
    def groups(self) -> int:
        """How many groups of episodes an iteration has, where all could be played."""
        ...

    def take_metrics(self) -> dict[str, float]:
        """What the last call took on the devices."""
        ...

    def prepare(self, step: int) -> None:
        """Refuses, before anything is evaluated, turns of this step that no batch can hold."""
        ...

    def __call__(self, step: int, params: Any) -> list[Trajectory]: ...


def make_collector(
    cfg: Run,
    env: Environment,
    *,
    student: Model,
    teacher: Model | None,
    algorithm: Algorithm,
    between_turns: Callable[[], None],
    playing: Playing = lambda name, episodes: contextlib.nullcontext(lambda count: None),
) -> Collector:
    """The collector that `rollout.source` names; `playing` shows how far a rollout is."""
    if cfg.rollout.source == "recorded":
        return Recorded(cfg, student, between_turns)
    tasks = env.plugin.tasks(env.settings, cfg.env.train_split)  # as lazy as the environment is
    source = TaskSource(tasks, cfg.seed)
    if cfg.rollout.source == "expert":
        return ExpertPlays(cfg, env, source, between_turns=between_turns)
    return StudentPlays(
        cfg,
        env,
        source,
        student=student,
        teacher=teacher,
        algorithm=algorithm,
        between_turns=between_turns,
        playing=playing,
    )


class StudentPlays:
    """The student plays `rollout.tasks` tasks, each `rollout.group` times."""

    def __init__(
        self,
        cfg: Run,
        env: Environment,
        source: TaskSource,
        *,
        student: Model,
        teacher: Model | None,
        algorithm: Algorithm,
        between_turns: Callable[[], None],
        playing: Playing,
    ):
        self._cfg, self._env, self._source = cfg, env, source
        self._student, self._teacher, self._algorithm = student, teacher, algorithm
        self._between_turns, self._playing = between_turns, playing
        self._policy = self._policy_of(student, cfg.rollout.tasks * cfg.rollout.group)
        self.groups = cfg.rollout.tasks

    def __call__(self, step: int, params: Any) -> list[Trajectory]:
        """Groups that could not be played are left out."""
        cfg = self._cfg
        tasks = self._source.batch(step, cfg.rollout.tasks)
        plan = self._algorithm.rollout_plan(step)
        prefixes = self._demonstrations(step, plan.prefix_by, tasks) if plan.prefix_by else ()
        contexts = ()
        if self._algorithm.teacher.privileged:
            shown = self._demonstrations(step, "expert", tasks)
            contexts = [demonstration_text(commands) for commands in shown]
        drawn = key(cfg.seed, Stream.rollout, step)
        with self._playing(f"step {step + 1}", len(tasks) * cfg.rollout.group) as ended:
            trajectories = play_shared(
                self._policy.sampler(to_sampling(self._student, params), drawn),
                self._env.renderer,
                self._env.pool,
                tasks=tasks,
                group_size=cfg.rollout.group,
                plan=plan,
                demonstrations=prefixes,
                contexts=contexts,
                between_turns=self._between_turns,
                ended=ended,
            )
        return rollout.whole_groups(trajectories)

    def take_metrics(self) -> dict[str, float]:
        """See `Collector`."""
        counts = self._policy.take_counts()
        return {"rollout/kept_steps": counts.kept / max(1, counts.steps)}

    def prepare(self, step: int) -> None:
        """Nothing: the sampler writes no more than a batch holds."""

    def _policy_of(self, model: Model, episodes: int) -> Policy:
        sampling = self._cfg.sampling
        return policy(sampling, model, temperature=sampling.temperature, episodes=episodes)

    def _demonstrations(self, step: int, who: str, tasks: Sequence[Task]) -> list[Commands]:
        if who == "teacher":
            return self._teacher_demonstrates(step, tasks)
        env, demonstrate = self._env, self._env.plugin.demonstration
        if demonstrate is None:
            raise ValueError(
                f"algorithm.name={self._cfg.algorithm.name!r} needs demonstrations, and "
                f"env.name={self._cfg.env.name!r} has none; choose another of the two"
            )
        return [demonstrate(env.settings, task, env.max_turns) for task in tasks]

    @functools.cached_property
    def _teacher_plays(self) -> tuple[Policy, Any]:
        """The teacher's policy, and its weights as it plays."""
        assert self._teacher is not None  # `scorers.require_teacher` has refused this before
        weights = to_sampling(self._teacher, self._teacher.params)
        return self._policy_of(self._teacher, self._cfg.rollout.tasks), weights

    def _teacher_demonstrates(self, step: int, tasks: Sequence[Task]) -> list[Commands]:
        """One episode of the teacher per task; its commands where it won, nothing where it did
        not."""
        teacher, weights = self._teacher_plays
        episodes = play_shared(
            teacher.sampler(weights, key(self._cfg.seed, Stream.demonstrations, step)),
            self._env.renderer,
            self._env.pool,
            tasks=tasks,
            group_size=1,
            plan=RolloutPlan(max_turns=self._env.max_turns),
            between_turns=self._between_turns,
        )
        return [tuple(t.command for t in e.turns) if e.success else () for e in episodes]


class ExpertPlays:
    """The scripted expert plays; its turns are what supervised learning learns from."""

    def __init__(
        self,
        cfg: Run,
        env: Environment,
        source: TaskSource,
        *,
        between_turns: Callable[[], None],
    ):
        if env.plugin.expert is None:
            raise ValueError(
                f"rollout.source='expert': env.name={cfg.env.name!r} has no scripted expert; "
                "record episodes and use rollout.source=recorded"
            )
        self._cfg, self._env, self._source, self._between_turns = cfg, env, source, between_turns
        self._expert = env.plugin.expert
        self._ahead: dict[int, list[Trajectory]] = {}  # what `prepare` has played
        self.groups = cfg.rollout.tasks * cfg.rollout.group

    def prepare(self, step: int) -> None:
        """See `Collector`; a later step with longer targets makes its batch wider."""
        self._ahead[step] = self(step, None)
        require_room(self._cfg, self._ahead[step], "rollout.source='expert'")

    def __call__(self, step: int, params: Any) -> list[Trajectory]:
        """One episode per task; nothing depends on the student."""
        if step in self._ahead:
            return self._ahead.pop(step)
        trajectories = demos.collect_demos(
            self._expert,
            self._env.renderer,
            self._env.pool,
            tasks=self._source.batch(step, self.groups),
            max_turns=self._env.max_turns,
            cfg=self._cfg.demos,
            rng=rng(self._cfg.seed, Stream.demonstrations, step),
            between_turns=self._between_turns,
        )
        return rollout.whole_groups(trajectories)

    def take_metrics(self) -> dict[str, float]:
        """Nothing is sampled."""
        return {}


class Recorded:
    """The episodes of an earlier run, step by step."""

    def __init__(self, cfg: Run, student: Model, between_turns: Callable[[], None]):
        self._store, self._between_turns = EpisodeReader(cfg.rollout.episodes), between_turns
        self._cfg = cfg
        self._store.require_whole()
        require_tokenizer(self._store, student)
        missing = sorted(set(range(cfg.total_steps)) - set(self._store.steps))
        if missing:
            raise ValueError(
                f"total_steps={cfg.total_steps}: {self._store.folder} has no episodes of step "
                f"{missing[0]}; set total_steps={missing[0]} or record a longer run"
            )
        # turns of the expert are recorded as groups of one
        each = cfg.rollout.group if algorithm_of(cfg).supervised else 1
        self.groups = cfg.rollout.tasks * each

    def __call__(self, step: int, params: Any) -> list[Trajectory]:
        """As they were recorded; nothing depends on the student."""
        self._between_turns()
        return self._store.read(step)[0]

    def prepare(self, step: int) -> None:
        """See `Collector`."""
        require_room(self._cfg, self._store.read(step)[0], str(self._store.folder))

    def take_metrics(self) -> dict[str, float]:
        """Nothing is sampled."""
        return {}


def require_room(cfg: Run, trajectories: Sequence[Trajectory], source: str) -> None:
    """What is taught must be something that the student may write.

    Raises:
      ValueError: a target is longer than its responses may be, or every prompt is too long.
    """
    turns = [turn for t in trajectories for turn in t.turns if not turn.replayed]
    longest = max((len(turn.action) for turn in turns), default=0)
    if longest > cfg.sampling.max_new_tokens:
        raise ValueError(
            f"sampling.max_new_tokens={cfg.sampling.max_new_tokens}: the longest target of the "
            f"first step has {longest} tokens ({source}); set it to {longest} or more"
        )
    if trajectories and not turns:
        raise ValueError(
            f"sampling.prompt_buckets={cfg.sampling.prompt_buckets}: no first prompt fits the "
            f"last of them ({source}); add a longer one"
        )


def require_tokenizer(store: EpisodeReader, student: Model) -> None:
    """Ids mean something to the tokenizer that made them only.

    Raises:
      ValueError: the student has another one.
    """
    if store.tokenizer != tokenizer_digest(student.tokenizer):
        raise ValueError(
            f"{store.folder} was recorded with another tokenizer than that of the student "
            f"({student.path}); use the student.path of that run, or record the episodes again"
        )
