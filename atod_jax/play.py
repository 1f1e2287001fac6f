"""`python -m atod_jax.play --env=NAME`: play an environment yourself, exactly as a model would.

    python -m atod_jax.play --env=alfworld
    python -m atod_jax.play --config=configs/household.py --player=expert --games=200
    python -m atod_jax.play --env=alfworld --player=random --config.env.template=compact

You read the prompt that a model reads and type a response, or a bare command, which is put into
the form of a response for you; end of input (Ctrl-D) leaves. The players `expert` (scripted) and
`random` say how hard the games are. No model is loaded and no accelerator is used.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from ml_collections import ConfigDict

import configs
from atod_jax import config
from atod_jax.envs.base import Episode, Projection, StepResult, Template, TextEnv
from atod_jax.records import Task
from atod_jax.results.intervals import EvalResult
from atod_jax.results.report import evaluation_table
from atod_jax.run import cli
from atod_jax.streams import Stream, rng

ENV = flags.DEFINE_string(
    "env", "alfworld", "whose config configs/<env>.py is used; ignored where --config names one"
)
PLAYER = flags.DEFINE_enum("player", "human", ["human", "expert", "random"], "who plays")
GAMES = flags.DEFINE_integer("games", 0, "how many; 0 = one for you, 100 for the others")
FIRST = flags.DEFINE_integer("first", 0, "number of the first game within the split")

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

    module: ModuleType
    settings: Any
    template: Template
    history: int
    max_turns: int


def main(cfg: ConfigDict, workdir: str) -> None:
    """The command."""
    play(cfg, PLAYER.value, games=GAMES.value, first=FIRST.value)


def play(cfg: ConfigDict, player: str, *, games: int = 0, first: int = 0) -> list[Outcome]:
    """Plays `games` tasks of cfg.eval.split from number `first` on; prints a table at the end.

    Raises:
      ValueError: the split has no such tasks.
    """
    table = lay(cfg)
    tasks = _choose(table.module.tasks(table.settings, cfg.eval.split), cfg.eval.split,
                    first, games or (1 if player == "human" else 100))  # fmt: skip
    respond, watch = _player(table, player, cfg.seed)
    env, outcomes = table.module.make(table.settings), []
    try:
        for number, task in enumerate(tasks, 1):
            if player == "human":
                print(f"=== game {number} of {len(tasks)}: {task.id}")
            outcomes.append(outcome := play_one(env, task, table, respond, watch))
            if player == "human":
                print(f"{'won' if outcome.won else 'not won'} in {outcome.turns} turns\n")
    except EOFError:
        print("\nend of input: this game is not counted")
    finally:
        env.close()
    if outcomes:
        print(f"{cfg.env.name}, {cfg.eval.split}: {len(outcomes)} tasks from number {first}\n")
        print(evaluation_table({player: summarize(outcomes)}))
    return outcomes


def lay(cfg: ConfigDict) -> Table:
    """The environment that a config names; raises like `config.environment`."""
    return Table(*config.environment(cfg), cfg.env.history, cfg.env.max_turns)


def play_one(env: TextEnv, task: Task, table: Table, respond: Respond, watch: Watch) -> Outcome:
    """One episode, to its end or to the turn limit."""
    template, episode = table.template, Episode((), env.reset(task))
    valid = 0
    for turn in range(1, table.max_turns + 1):
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


def _choose(tasks: Sequence[Task], split: str, first: int, count: int) -> list[Task]:
    if not 0 <= first < len(tasks):
        raise ValueError(f"--first={first}: {split} has the games 0 to {len(tasks) - 1}")
    return [tasks[i] for i in range(first, min(first + count, len(tasks)))]


def _player(table: Table, name: str, seed: int) -> tuple[Respond, Watch]:
    template, expert = table.template, table.module.expert
    draws = rng(seed, Stream.evaluation)
    if name == "human":
        return lambda prompt, _: _ask(template, prompt), _tell
    if name == "expert":
        return lambda _, episode: template.respond(expert.act(episode), ""), _ignore
    return (
        lambda _, episode: template.respond(
            expert.disturb(draws, episode.current.commands, absent=0.0), ""
        ),
        _ignore,
    )


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


def with_config(arguments: list[str]) -> list[str]:
    """The command line with the config of --env added where it names none.

    Raises:
      ValueError: there is no config for that environment.
    """
    if any(re.match(r"--?config(=|$)", argument) for argument in arguments):
        return arguments
    early = flags.FlagValues()
    name = flags.DEFINE_string("env", ENV.default, "", flag_values=early)
    early(["play", *arguments], known_only=True)
    path = Path(configs.__file__).parent / f"{name.value}.py"
    if not path.is_file():
        known = ", ".join(config.plugin_names("envs"))
        raise ValueError(f"--env={name.value}: no config {path}; the environments are {known}")
    return [f"--config={path}", *arguments]


if __name__ == "__main__":
    cli.run(main, workdir_required=False, model_required=False, complete=with_config)
