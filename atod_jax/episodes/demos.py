"""Supervised turns: a scripted expert plays, is disturbed at random, and says what it would do.

The records are the same as a rollout's, so the same learner trains on them. Labels on disturbed
states are what keeps a policy useful after its own mistakes (DAgger/DART style).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from atod_jax.envs.base import Expert
from atod_jax.envs.pool import EnvPool
from atod_jax.episodes.render import Renderer
from atod_jax.episodes.rollout import Slot
from atod_jax.options.field import Check, check, each, one_of, option, within
from atod_jax.records import StopReason, Task, Trajectory, Turn

_A_RANGE = Check("give two numbers, the lower one first", lambda x: len(x) == 2 and x[0] <= x[1])


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """How the expert is disturbed and what is taught."""

    noise: tuple[float, float] = option(
        (0.0, 0.0),
        "chance of a random command instead of the expert's; drawn for each trajectory, uniform in "
        "this range",
        each(within(0, 1)),
        _A_RANGE,
    )
    label: str = option(
        "expert",
        "what a turn teaches; expert: what it would do here, executed: what was played, mistakes "
        "included",
        one_of("expert", "executed"),
    )
    absent: float = option(
        0.3, "share of random commands that name a receptacle which may be absent", within(0, 1)
    )
    thoughts: bool = option(False, "write a short thought before the command")
    turned: float = option(
        0.0, "share of thoughts that say the conclusion before its reason", within(0, 1)
    )

    def __post_init__(self) -> None:
        check(self)
        if self.turned and not self.thoughts:
            raise ValueError(
                f"turned={self.turned:g}: there is no thought to turn; set "
                "demos.thoughts=true, or demos.turned=0"
            )


def collect_demos(
    expert: Expert,
    renderer: Renderer,
    pool: EnvPool,
    *,
    tasks: Sequence[Task],
    max_turns: int,
    cfg: DemoConfig,
    rng: np.random.Generator,
    between_turns: Callable[[], None] = lambda: None,
) -> list[Trajectory]:
    """One disturbed expert trajectory per task; `action` holds the label's ids, `logp` is zero.

    Raises:
      ValueError: `cfg` asks for noise and the expert knows none.
    """
    if cfg.noise[1] > 0 and expert.disturb is None:
        raise ValueError(
            f"demos.noise={cfg.noise}: the expert of this environment has no `disturb`; set "
            "demos.noise=0,0"
        )
    stage = _Stage(expert, renderer, pool, max_turns, cfg, rng)
    first = pool.reset(tasks)
    slots = [
        Slot.open(b, task, group=b, first=shown)
        for b, (task, shown) in enumerate(zip(tasks, first, strict=True))
    ]
    noise = rng.uniform(*cfg.noise, size=len(slots))
    for _ in range(max_turns):
        live = [b for b, slot in enumerate(slots) if slot.stop is None]
        if not live:
            break
        between_turns()
        prompts = renderer.prompts([slots[b].episode for b in live])
        for b, prompt in zip(live, prompts, strict=True):
            if renderer.fits(prompt):
                stage.play(slots[b], prompt, noise[b])
            else:
                slots[b].stop = StopReason.prompt_too_long
    return [slot.trajectory() for slot in slots]


class _Stage(NamedTuple):
    """What all episodes of one collection have in common."""

    expert: Expert
    renderer: Renderer
    pool: EnvPool
    max_turns: int
    cfg: DemoConfig
    rng: np.random.Generator

    def play(self, slot: Slot, prompt: np.ndarray, noise: float) -> None:
        """Plays one turn of one episode."""
        best = self.expert.act(slot.episode)
        executed = best
        if self.rng.random() < noise and self.expert.disturb is not None:
            commands = slot.episode.current.commands
            executed = self.expert.disturb(self.rng, commands, absent=self.cfg.absent)
        label = best if self.cfg.label == "expert" else executed
        thought = self.expert.thought(slot.episode, label) if self.cfg.thoughts else ""
        if self.cfg.turned and self.rng.random() < self.cfg.turned:
            thought = turned(thought)
        action = self.renderer.target(label, thought)
        (result,) = self.pool.step([(slot.number, executed)])
        turn = Turn(
            prompt=prompt,
            action=action,
            logp=np.zeros(len(action), np.float32),
            observation=slot.episode.current.text,
            response=self.renderer.response(action),
            command=executed,
            valid=True,
            reward=0.0,
        )
        slot.record(turn, result, self.max_turns)


def turned(thought: str) -> str:
    """The same words with the conclusion before its reason; a thought without these as it is.

    The first word stays the first: a word inside a text is one piece of the tokenizer, at its
    start it may be letters.

    >>> turned("need a mug. shelf 1 has nothing, no mug, so go on to shelf 2")
    'need a mug, so go on to shelf 2. shelf 1 has nothing, no mug'
    """
    before, so, conclusion = thought.rpartition(", so ")
    start, stop, reason = before.partition(". ")
    return f"{start}{so}{conclusion}{stop}{reason}"
