"""Play an environment yourself, exactly as a model would, or watch a model play it.

    python -m atod_jax.play --env=alfworld
    python -m atod_jax.play --player=model --checkpoint=runs/a --games=3
    python -m atod_jax.play --config=household --player=expert --games=200
    python -m atod_jax.play --env=my_package.my_environment --player=random

You read the prompt that a model reads and type a command, its number, or a whole response; a
command is put into the form of a response for you. Later turns show what is new; Enter alone shows
the whole prompt, Ctrl-D or Ctrl-C leaves. The players `expert` (scripted, where
an environment has one) and `random` say how hard the games are. With --checkpoint the games are
those of that run. `model` shows the student, or what --checkpoint names, turn by turn: the prompt,
what it thought and what it did, as in the first pass of an evaluation. The others load no model.
"""

import argparse
import contextlib
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

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
from atod_jax.records import CUT, StopReason, Task
from atod_jax.results.intervals import EvalResult
from atod_jax.results.report import evaluation_table, warnings_of
from atod_jax.run import cli, person
from atod_jax.run.checkpoints import add_checkpoint, own_config
from atod_jax.run.player import ModelPlayer, Said
from atod_jax.streams import Stream, rng
from atod_jax.texts import one_line, visible

PLAYERS = ("human", "model", "expert", "random")
WATCHED = ("human", "model")  # one game at a time, with every turn on the screen


class Outcome(NamedTuple):
    """How one episode ended."""

    task: Task
    won: bool
    score: float
    turns: int
    valid: int  # responses that parsed into an action
    stop: StopReason
    problems: tuple[str, ...]  # of the turns that had one, see `records.Turn`


Respond = Callable[[str, Episode], Said | None]  # of a prompt; None: it does not fit


class Watch(Protocol):
    """Sees what was made of a response, and what it led to; `last`: no prompt will show that."""

    def __call__(self, action: Projection, result: StepResult, *, last: bool) -> None: ...


class Table(NamedTuple):
    """An environment laid out for playing: its rules and how it is shown."""

    plugin: Environment
    settings: Any
    template: Template
    history: int
    max_turns: int


def play(
    cfg: Run, player: str, *, games: int = 0, first: int = 0, checkpoint: str = ""
) -> list[Outcome]:
    """Plays `games` tasks of cfg.eval.split from number `first` on; prints a table at the end.

    Args:
      cfg: whose games.
      player: one of PLAYERS.
      games: how many; 0: one that is watched, 100 others.
      first: number of the first one.
      checkpoint: whose weights `model` plays with; "": those of cfg.student.

    Raises:
      ValueError: the split has no such tasks.
    """
    if games < 0:
        raise ValueError(f"--games={games}: give a number of games, or 0")
    table, split = lay(cfg), cfg.eval.split
    count = games or (1 if player in WATCHED else 100)
    tasks = _choose(table.plugin.tasks(table.settings, split), split, first=first, count=count)
    if player == "model":
        respond, watch = _show(ModelPlayer(cfg, checkpoint, first=first)), _tell
    else:
        respond, watch = _player(table, player, cfg)
    env, outcomes = table.plugin.make(table.settings, table.max_turns), []
    with contextlib.closing(env), _leaving():
        for number, task in enumerate(tasks, 1):
            if player in WATCHED:
                print(f"=== game {number} of {len(tasks)}: {one_line(task.id)}")
            outcomes.append(outcome := play_one(env, task, table, respond=respond, watch=watch))
            if player in WATCHED:
                print(f"{'won' if outcome.won else 'not won'} in {outcome.turns} turns")
                print(_solution(table.plugin, outcome))
    if outcomes:
        print(f"{cfg.env.name}, {split}: {len(outcomes)} tasks from number {first}\n")
        result = summarize(outcomes)
        warnings = warnings_of({"of the model": result}, responses=()) if player == "model" else []
        print("\n".join([evaluation_table({player: result}), *warnings]))
    return outcomes


def lay(cfg: Run) -> Table:
    """The environment that a config names, and how it is shown."""
    plugin, env = config.environment_of(cfg), cfg.env
    template = template_of(plugin, env.template, actions=env.actions)
    return Table(plugin, env.settings, template, env.history, env.max_turns)


def play_one(env: TextEnv, task: Task, table: Table, *, respond: Respond, watch: Watch) -> Outcome:
    """One episode, to its end or to the turn limit."""
    template, episode, result = table.template, Episode((), env.reset(task)), None
    valid, problems, stop = [], [], StopReason.max_turns
    while len(valid) < table.max_turns:
        said = respond(template.prompt(episode, table.history), episode)
        if said is None:
            stop = StopReason.prompt_too_long
            break
        action = template.project(said.response, episode.current.commands)
        result = env.step(action.command)
        valid.append(action.valid)
        watch(action, result, last=result.done or len(valid) == table.max_turns)
        problems += said.problems
        if CUT not in said.problems:
            problems.append(action.reason)
        if result.done:
            stop = StopReason.done
            break
        past = (*episode.past, (episode.current.text, action.command))
        episode = Episode(past, result.observation)
    won = result is not None and result.won
    score = float(won) if result is None or result.score is None else result.score
    return Outcome(task, won, score, len(valid), sum(valid), stop, tuple(filter(None, problems)))


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
        valid_rate=sum(o.valid for o in outcomes) / max(1, int(turns.sum())),
        stops=Counter(o.stop.value for o in outcomes),
        problems=Counter(problem for o in outcomes for problem in o.problems),
    )


def _choose(tasks: Sequence[Task], split: str, *, first: int, count: int) -> list[Task]:
    if not 0 <= first < len(tasks):
        raise ValueError(f"--first={first}: {split} has the games 0 to {len(tasks) - 1}")
    return [tasks[i] for i in range(first, min(first + count, len(tasks)))]


def _player(table: Table, name: str, cfg: Run) -> tuple[Respond, Watch]:
    template, expert = table.template, table.plugin.expert
    draws = rng(cfg.seed, Stream.evaluation)
    if name == "human":
        person.edit_lines()
        return lambda prompt, episode: Said(person.ask(template, prompt, episode)), _tell
    if name == "expert" and expert is None:
        raise ValueError(
            f"--player=expert: env.name={cfg.env.name!r} has no scripted expert; choose human or "
            "random"
        )
    if name == "expert" and expert is not None:
        return lambda _, episode: Said(template.respond(expert.act(episode), "")), _ignore

    def draw(episode: Episode) -> str:
        commands = episode.current.commands
        if expert is not None and expert.disturb is not None:
            return expert.disturb(draws, commands, absent=0.0)
        return commands[draws.integers(len(commands))] if commands else ""

    return lambda _, episode: Said(template.respond(draw(episode), "")), _ignore


@contextlib.contextmanager
def _leaving() -> Iterator[None]:
    """Ctrl-C and the end of input leave the games."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except (EOFError, KeyboardInterrupt) as reason:
        why = "end of input" if isinstance(reason, EOFError) else "stopped"
        print(f"\n{why}: this game is not counted")
    finally:
        signal.signal(signal.SIGINT, before)


def _solution(plugin: Environment, outcome: Outcome) -> str:
    if outcome.won or plugin.answer is None:
        return ""
    return f"right would have been: {one_line(plugin.answer(outcome.task))}\n"


def _show(model: ModelPlayer) -> Respond:
    """The model's responses, shown with the prompts they answer."""

    def respond(prompt: str, episode: Episode) -> Said | None:
        print(f"--- turn {len(episode.past) + 1}\n\n{visible(prompt)}\n")
        said = model(episode)
        if said is None:
            print("the prompt does not fit the model (sampling.prompt_buckets)")
            return None
        thought, closed, answer = said.response.rpartition("</think>")
        if closed:
            print(f"thought: {visible(thought.removeprefix('<think>').strip())}\n")
        notes = f"  ({', '.join(said.problems)})" if said.problems else ""
        print(f"answer: {visible(answer.strip())}{notes}")
        return said

    return respond


def _tell(action: Projection, result: StepResult, *, last: bool) -> None:
    note = "" if action.valid else f"  (not a valid response){_because(action)}"
    graded = "" if result.score is None else f", score {result.score:g}"
    print(f"\ncommand: {visible(action.command)}{note}")
    if last:
        print(visible(result.observation.text))
    print(f"reward {result.reward:g}{graded}")


def _because(action: Projection) -> str:
    return f": {action.problem}" if action.problem else ""


def _ignore(action: Projection, result: StepResult, *, last: bool) -> None:
    """The scripted players play in silence."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The program's own flags."""
    add = parser.add_argument
    add("--env", default="", help="an environment, or a module of yours; --config replaces it")
    add("--player", default="human", choices=PLAYERS, help="who plays")
    add("--games", type=int, default=0, help="how many; 0 = one to watch, 100 for the others")
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
    play(cfg, flags.player, games=flags.games, first=flags.first, checkpoint=flags.checkpoint)


PROGRAM = cli.Program(
    "play", __doc__, start, add_flags=add_flags, fallback=config_of, needs_model=False
)

if __name__ == "__main__":
    cli.run(PROGRAM)
