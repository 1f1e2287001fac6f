"""Supervised turns: a scripted expert plays, is disturbed at random, and says what it would do.

The records are the same as a rollout's, so the same learner trains on them. Labels on disturbed
states are what keeps a policy useful after its own mistakes (DAgger/DART style).
"""

import dataclasses
from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np

from atod_jax.envs.pool import EnvPool
from atod_jax.episodes.render import Renderer
from atod_jax.episodes.rollout import Slot
from atod_jax.records import Task, Trajectory, Turn


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """How the expert is disturbed and what is taught."""

    noise: tuple[float, float]  # chance of a random command: uniform in this range, per trajectory
    label: str  # "expert": what it would do here; "executed": what was played, mistakes included
    absent: float  # share of random commands that name a receptacle which may be absent
    thoughts: bool  # write a short thought before the command


def collect_demos(
    expert: ModuleType,
    renderer: Renderer,
    pool: EnvPool,
    tasks: Sequence[Task],
    *,
    max_turns: int,
    cfg: DemoConfig,
    rng: np.random.Generator,
    between_turns: Callable[[], None] = lambda: None,
) -> list[Trajectory]:
    """One disturbed expert trajectory per task; `action` holds the label's ids, `logp` is zero.

    Args:
      expert: a module with act(episode), thought(episode, command) and disturb(rng, commands, ...).
    """
    first = pool.reset(tasks)
    slots = [Slot.open(b, task, b, shown) for b, (task, shown) in enumerate(zip(tasks, first))]
    noise = rng.uniform(*cfg.noise, size=len(slots))
    for _ in range(max_turns):
        live = [b for b, slot in enumerate(slots) if slot.stop is None]
        if not live:
            break
        between_turns()
        prompts = renderer.prompts([slots[b].episode for b in live])
        for b, prompt in zip(live, prompts):
            _play(expert, renderer, pool, slots[b], prompt, noise[b], max_turns, cfg, rng)
    return [slot.trajectory() for slot in slots]


def _play(
    expert: ModuleType,
    renderer: Renderer,
    pool: EnvPool,
    slot: Slot,
    prompt: np.ndarray,
    noise: float,
    max_turns: int,
    cfg: DemoConfig,
    rng: np.random.Generator,
) -> None:
    best = expert.act(slot.episode)
    executed = best
    if rng.random() < noise:
        executed = expert.disturb(rng, slot.episode.current.commands, absent=cfg.absent)
    label = best if cfg.label == "expert" else executed
    thought = expert.thought(slot.episode, label) if cfg.thoughts else ""
    action = renderer.target(label, thought)
    (result,) = pool.step([(slot.number, executed)])
    turn = Turn(
        prompt=prompt,
        action=action,
        logp=np.zeros(len(action), np.float32),
        observation=slot.episode.current.text,
        response=renderer.response(action),
        command=executed,
        valid=True,
        reward=0.0,
    )
    slot.record(turn, result, max_turns)
