"""The parts of a run that its options name: algorithm, environment, sampler, scoring."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from atod_jax.algorithms.base import Step, TeacherContext
from atod_jax.config.reading import algorithm_of, environment_of
from atod_jax.config.sections import Run, Sampling
from atod_jax.core.fused import HeadConfig
from atod_jax.device import learner
from atod_jax.device.optim import make_learning_rate, make_optimizer
from atod_jax.device.policy import Policy
from atod_jax.device.sampling import SamplingConfig
from atod_jax.envs import base as envs
from atod_jax.envs.pool import EnvPool
from atod_jax.envs.templates import template_of
from atod_jax.episodes.render import Renderer
from atod_jax.episodes.tokens import Tokens
from atod_jax.records import RolloutPlan, Task
from atod_jax.run.models import Model
from atod_jax.types import Signal


class Algorithm(NamedTuple):
    """One algorithm with its options filled in; see `algorithms.base.Algorithm`."""

    name: str
    signal: Callable[[Step], Signal]
    needs_teacher: Callable[[int], bool]  # (step)
    rollout_plan: Callable[[int], RolloutPlan]  # (step)
    teacher: TeacherContext
    turn_weights: Callable[[Step], jax.Array] | None
    scores_student: bool


class Environment(NamedTuple):
    """One task family with its options, a pool of players, and the renderer of prompts."""

    plugin: envs.Environment
    settings: Any
    max_turns: int
    pool: EnvPool
    renderer: Renderer

    def tasks(self, split: str, count: int = 0) -> Sequence[Task]:
        """The first `count` tasks of a split; 0 means all."""
        tasks = self.plugin.tasks(self.settings, split)
        return [tasks[i] for i in range(min(count or len(tasks), len(tasks)))]


def algorithm(cfg: Run) -> Algorithm:
    """The algorithm of a run."""
    plugin, settings = algorithm_of(cfg), cfg.algorithm.settings
    bind = functools.partial
    weights = plugin.turn_weights
    return Algorithm(
        name=cfg.algorithm.name,
        signal=bind(plugin.signal, settings),
        needs_teacher=bind(plugin.needs_teacher, settings),
        rollout_plan=lambda step: plugin.rollout_plan(settings, step, cfg.env.max_turns),
        teacher=plugin.teacher(settings),
        turn_weights=bind(weights, settings) if weights else None,
        scores_student=plugin.scores_student,
    )


def environment(cfg: Run, tokens: Tokens) -> Environment:
    """The environment side of a run."""
    plugin, settings, turns = environment_of(cfg), cfg.env.settings, cfg.env.max_turns
    pool = EnvPool(functools.partial(plugin.make, settings, turns), cfg.env)
    return Environment(plugin, settings, turns, pool, renderer(cfg, tokens))


def renderer(cfg: Run, tokens: Tokens) -> Renderer:
    """How a run shows episodes and reads responses."""
    return Renderer(
        tokens,
        template_of(environment_of(cfg), cfg.env.template, actions=cfg.env.actions),
        history=cfg.env.history,
        thinking=cfg.env.thinking,
        longest=cfg.sampling.prompt_buckets[-1],
    )


def head_config(cfg: Run, tokens: Tokens, mesh: Mesh) -> HeadConfig:
    """How student and teacher are scored: the rollout's temperature and support."""
    return HeadConfig(
        temperature=cfg.sampling.temperature,
        vocab=tokens.count,
        forbidden=tokens.silent,
        mesh=mesh,
    )


def make_update(cfg: Run, student: Model) -> learner.Update:
    """The update of a run, see `learner.make_update`."""
    tx = make_optimizer(cfg.optim)
    return learner.make_update(
        student.lm,
        tx,
        learning_rate=make_learning_rate(cfg.optim, cfg.total_steps),
        loss=cfg.loss,
        head=head_config(cfg, student.tokens, student.layout.mesh),
        places=learner.state_places(student.lm.split(student.params)[0], tx),
    )


def policy(cfg: Sampling, model: Model, *, temperature: float, episodes: int) -> Policy:
    """`model` as it plays up to `episodes` at a time in all processes, at the given temperature.

    It takes weights as `models.to_sampling` gives them.
    """
    sampling = SamplingConfig(
        temperature=temperature,
        top_k=cfg.top_k,
        top_p=cfg.top_p,
        max_new_tokens=cfg.max_new_tokens,
        prompt_buckets=cfg.prompt_buckets,
        slots=-(-min(episodes, cfg.rows) // jax.process_count()),
        eos_ids=model.tokens.ends,
        pad_id=model.tokens.pad,
        vocab=model.tokens.count,
        forbidden=model.tokens.silent,
    )
    return Policy(model.lm, sampling, model.sampling.mesh)
