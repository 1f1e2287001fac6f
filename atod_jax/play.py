"""Play an environment yourself, exactly as a model would.

    python -m atod_jax.play --env=alfworld
    python -m atod_jax.play --config=household --player=expert --games=200
    python -m atod_jax.play --env=my_package.my_environment --player=random

You read the prompt that a model reads and type a response, or a bare command, which is put into
the form of a response for you; end of input (Ctrl-D) leaves. The players `expert` (scripted, where
an environment has one) and `random` say how hard the games are. No model is loaded and no
accelerator is used. With --checkpoint the games are those of that run.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from atod_jax import config
from atod_jax.config import Run
from atod_jax.envs.base import (
    Environment,
    Episode,
    Projection,
    StepResult,
    Template,
    TextEnv,
)
from atod_jax.envs.templates import template_of
from atod_jax.records import Task
from atod_jax.results.intervals import EvalResult
from atod_jax.results.report import evaluation_table
from atod_jax.run import cli
from atod_jax.run.checkpoints import add_checkpoint, own_config
from atod_jax.streams import Stream, rng

PLAYERS = ("human", "expert", "random")
_TAG = re.compile(r"</?\w+>")


class Outcome(NamedTuple):
    """How one episode ended."""

    task: Task
    won: bool
    score: float
    turns: int
    valid: int  # responses that parsed into an action


Respond = Callable[[str, Episode], str]  # (prompt, episode) -> response
Watch = Callable[[Projection, StepResult], None]  # what was made of it, and what it led to


class Table(NamedTuple):
    """An environment laid out for playing: its rules and how it is shown."""

    plugin: Environment
    settings: Any
    template: Template
    history: int
    max_turns: int


def play(cfg: Run, player: str, *, games: int = 0, first: int = 0) -> list[Outcome]:
    """Plays `games` tasks of cfg.eval.split from number `first` on; prints a table at the end.

    Raises:
      ValueError: the split has no such tasks.
    """
    if games < 0:
        raise ValueError(f"--games={games}: give a number of games, or 0")
    table, split = lay(cfg), cfg.eval.split
    count = games or (1 if player == "human" else 100)
    tasks = _choose(table.plugin.tasks(table.settings, split), split, first=first, count=count)
    respond, watch = _player(table, player, cfg)
    env, outcomes = table.plugin.make(table.settings, table.max_turns), []
    try:
        for number, task in enumerate(tasks, 1):
            if player == "human":
                print(f"=== game {number} of {len(tasks)}: {task.id}")
            outcomes.append(outcome := play_one(env, task, table, respond=respond, watch=watch))
            if player == "human":
                print(f"{'won' if outcome.won else 'not won'} in {outcome.turns} turns\n")
    except EOFError:
        print("\nend of input: this game is not counted")
    finally:
        env.close()
    if outcomes:
        print(f"{cfg.env.name}, {split}: {len(outcomes)} tasks from number {first}\n")
        print(evaluation_table({player: summarize(outcomes)}))
    return outcomes


def lay(cfg: Run) -> Table:
    """The environment that a config names, and how it is shown."""
    plugin, env = config.environment_of(cfg), cfg.env
    template = template_of(plugin, env.template, actions=env.actions)
    return Table(plugin, env.settings, template, env.history, env.max_turns)


def play_one(env: TextEnv, task: Task, table: Table, *, respond: Respond, watch: Watch) -> Outcome:
    """One episode, to its end or to the turn limit."""
    template, episode = table.template, Episode((), env.reset(task))
    turn = valid = 0
    while True:
        turn += 1
        response = respond(template.prompt(episode, table.history), episode)
        action = template.project(response, episode.current.commands)
        result = env.step(action.command)
        watch(action, result)
        valid += action.valid
        if result.done or turn == table.max_turns:
            break
        past = (*episode.past, (episode.current.text, action.command))
        episode = Episode(past, result.observation)
    score = float(result.won) if result.score is None else result.score
    return Outcome(task, result.won, score, turn, valid)


def summarize(outcomes: Sequence[Outcome]) -> EvalResult:
    """The outcomes as an evaluation, for its table and intervals."""
    turns = np.asarray([[o.turns for o in outcomes]], np.int32)
    return EvalResult(
        temperature=0.0,
        task_ids=tuple(o.task.id for o in outcomes),
        kinds=tuple(o.task.kind for o in outcomes),
        success=np.asarray([[o.won for o in outcomes]]),
        turns=turns,
        score=np.asarray([[o.score for o in outcomes]], np.float32),
        valid_rate=sum(o.valid for o in outcomes) / int(turns.sum()),
    )


def as_response(template: Template, typed: str) -> str:
    """What was typed, if it holds tags; a bare command becomes a response without a thought."""
    return typed if _TAG.search(typed) else template.respond(typed.strip(), "")


def _choose(tasks: Sequence[Task], split: str, *, first: int, count: int) -> list[Task]:
    if not 0 <= first < len(tasks):
        raise ValueError(f"--first={first}: {split} has the games 0 to {len(tasks) - 1}")
    return [tasks[i] for i in range(first, min(first + count, len(tasks)))]


def _player(table: Table, name: str, cfg: Run) -> tuple[Respond, Watch]:
    template, expert = table.template, table.plugin.expert
    draws = rng(cfg.seed, Stream.evaluation)
    if name == "human":
        return lambda prompt, _: _ask(template, prompt), _tell
    if name == "expert" and expert is None:
        raise ValueError(
            f"--player=expert: env.name={cfg.env.name!r} has no scripted expert; choose human or "
            "random"
        )
    if name == "expert" and expert is not None:
        return lambda _, episode: template.respond(expert.act(episode), ""), _ignore

    def draw(episode: Episode) -> str:
        commands = episode.current.commands
        if expert is not None and expert.disturb is not None:
            return expert.disturb(draws, commands, absent=0.0)
        return commands[draws.integers(len(commands))] if commands else ""

    return lambda _, episode: template.respond(draw(episode), ""), _ignore


def _ask(template: Template, prompt: str) -> str:
    print(f"\n{prompt}\n")
    return as_response(template, input("> "))


def _tell(action: Projection, result: StepResult) -> None:
    note = "" if action.valid else "  (not a valid response)"
    graded = "" if result.score is None else f", score {result.score:g}"
    print(f"\ncommand: {action.command}{note}\n{result.observation.text}")
    print(f"reward {result.reward:g}{graded}")


def _ignore(action: Projection, result: StepResult) -> None:
    """The scripted players play in silence."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The program's own flags."""
    add = parser.add_argument
    add("--env", default="", help="an environment, or a module of yours; --config replaces it")
    add("--player", default="human", choices=PLAYERS, help="who plays")
    add("--games", type=int, default=0, help="how many; 0 = one for you, 100 for the others")
    add("--first", type=int, default=0, help="number of the first game within the split")
    add_checkpoint(parser)


def config_of(flags: cli.Flags) -> ConfigDict:
    """The config of --checkpoint, else the shipped one of --env, else the defaults for it."""
    if flags.checkpoint and flags.env:
        raise ValueError(
            f"--env={flags.env} with --checkpoint={flags.checkpoint}: whose games? give one of them"
        )
    if flags.checkpoint:
        return own_config(flags) or config.base()
    name = flags.env or "alfworld"
    if name in config.shipped():
        return config.load(name)
    return config.base(env=name)


def start(cfg: Run, flags: cli.Flags) -> None:
    """Plays what the flags name."""
    play(cfg, flags.player, games=flags.games, first=flags.first)


PROGRAM = cli.Program(
    "play", __doc__, start, add_flags=add_flags, fallback=config_of, needs_model=False
)

if __name__ == "__main__":
    cli.run(PROGRAM)
