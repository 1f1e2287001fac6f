"""WebShop as text: the native shop over the official product files or a generated catalogue."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from atod_jax.envs import scripted
from atod_jax.envs.base import FINITE, Environment, Expert, Observation, StepResult
from atod_jax.envs.lazy import LazyTasks
from atod_jax.envs.webshop import expert, generate, pages, shop
from atod_jax.envs.webshop.engine import Engine
from atod_jax.envs.webshop.prompts import TEMPLATES
from atod_jax.options.field import SEED, check, option
from atod_jax.records import Task

SPLITS = ("train", "valid")
VALID_GOALS = 500  # the first goals are for testing, the others for training


@dataclasses.dataclass(frozen=True)
class Config:
    """Which shop is visited."""

    data: str = option("", "folder with the official product files; empty: a generated catalogue")
    human_goals: bool = option(False, "requests of people instead of made-up ones; needs data")
    seed: int = option(0, "of the generated catalogue", SEED)
    win_reward: float = option(10.0, "paid at the end for a purchase of score 1, else 0", FINITE)

    def __post_init__(self):
        check(self)
        if self.human_goals and not self.data:
            raise ValueError(
                "human_goals=True: nobody has asked for generated products; set env.webshop.data "
                "to the folder of the official files"
            )


@functools.cache
def open_shop(data: str, seed: int, *, people: bool = False) -> shop.Shop:
    """The shop of a config, once per process.

    Raises:
      FileNotFoundError: no folder `data`, or a file missing in it.
      ValueError: a damaged file in it.
    """
    if data:
        return shop.cached(Path(data), people=people)
    return shop.in_memory(generate.products(seed))


def tasks(cfg: Config, split: str) -> Sequence[Task]:
    """The goals of a split: the first 500 are `valid`, all others `train`.

    Raises:
      ValueError: unknown split, no goal in it, or a damaged file.
      FileNotFoundError: no folder `cfg.data`, or a file missing in it.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; use one of {', '.join(SPLITS)}")
    opened = open_shop(cfg.data, cfg.seed, people=cfg.human_goals)
    valid, train = range(VALID_GOALS), range(VALID_GOALS, opened.goal_count)
    numbers = (valid if split == "valid" else train)[: opened.goal_count]
    if not len(numbers):
        raise ValueError(
            f"{cfg.data} has {opened.goal_count} goals, none for split {split!r}: the first "
            f"{VALID_GOALS} are for 'valid'; use more products"
        )
    return LazyTasks(functools.partial(_task, opened), numbers)


def _task(opened: shop.Shop, number: int) -> Task:
    return Task(id=f"goal-{number}", kind=opened.goal(number).category, payload=number)


class WebshopEnv:
    """One visitor; every step after the purchase is refused."""

    def __init__(self, cfg: Config):
        self._cfg = cfg
        self._engine: Engine | None = None

    def reset(self, task: Task) -> Observation:
        """Enters the shop with the goal whose number is `task.payload`."""
        opened = open_shop(self._cfg.data, self._cfg.seed, people=self._cfg.human_goals)
        self._engine = Engine(opened, opened.goal(task.payload))
        return observe(self._engine)

    def step(self, command: str) -> StepResult:
        """Plays one command; a purchase ends the visit and is scored from 0 to 1.

        The reward is `win_reward` for a purchase of score 1, else 0.

        Raises:
          ValueError: no visit is under way (before `reset`, after a purchase or after `close`).
        """
        engine = self._engine
        if engine is None:
            raise ValueError(f"step({command[:80]!r}) outside a visit; call reset(task) first")
        engine.step(command)
        done, won = engine.score is not None, engine.score == 1.0
        if done:
            self._engine = None
        reward = self._cfg.win_reward if won else 0.0
        return StepResult(observe(engine), reward, done, won, engine.score)

    def close(self) -> None:
        """Leaves the shop."""
        self._engine = None


def observe(engine: Engine) -> Observation:
    """The open page in one line, and what can be done on it."""
    search = ("search[<your query>]",) if engine.has_search_bar else ()
    clicks = tuple(f"click[{text}]" for text in engine.clickables)
    return Observation(pages.text(engine.page), search + clicks)


def make(cfg: Config, max_turns: int = 0) -> WebshopEnv:
    """A visitor for the tasks of `cfg`, who needs no turn limit."""
    return WebshopEnv(cfg)


def demonstration(cfg: Config, task: Task, max_turns: int) -> tuple[str, ...]:
    """What the scripted expert does to win the task within `max_turns`, () where it does not."""
    return scripted.solve(make(cfg), expert.act, task=task, max_turns=max_turns)


ENVIRONMENT = Environment(
    Config=Config,
    splits=SPLITS,
    templates=TEMPLATES,
    tasks=tasks,
    make=make,
    demonstration=demonstration,
    expert=Expert(expert.act, expert.thought, expert.disturb),
    data=(
        "items_shuffle.json and items_ins_v2.json of princeton-nlp/WebShop (its setup.sh fetches"
        " them; for people's requests also items_human_ins.json), then"
        " --config.env.webshop.data=FOLDER; without them a generated shop is visited"
    ),
)
