"""A person who plays in place of a model."""

import contextlib
import importlib
import re
import sys
from collections.abc import Sequence

from rich.columns import Columns
from rich.console import Console
from rich.text import Text

from atod_jax.envs.base import Episode, Template
from atod_jax.texts import one_line, visible, whole

_TAG = re.compile(r"</?\w+>")
_WHOLE = re.compile(r"<(\w+)>[^<]*</\1>")  # a command of Search-QA, for one


def edit_lines() -> None:
    """Arrow keys and a history for what is typed, where this Python has them."""
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            importlib.import_module("readline")


def ask(template: Template, prompt: str, episode: Episode) -> str:
    """Shows what is new, the whole prompt in the first turn, and reads a response.

    Raises:
      EOFError: there is no more input.
    """
    print(f"\n{visible(episode.current.text if episode.past else prompt)}\n")
    commands = offered(episode)
    numbered = [Text(f"[{n}] {one_line(command)}") for n, command in enumerate(commands, 1)]
    Console().print(Columns(numbered, padding=(0, 2), column_first=True))
    while not (typed := whole(input("> ")).strip()) or _is_beyond(typed, commands):
        again = f"there are the numbers 1 to {len(commands)}" if typed else f"\n{visible(prompt)}\n"
        print(again)
    return as_response(template, chosen(typed, commands), episode.current.commands)


def offered(episode: Episode) -> list[str]:
    """The admissible commands that can be chosen as they are: none with a place to fill in."""
    return [command for command in episode.current.commands if "<" not in command]


def chosen(typed: str, commands: Sequence[str]) -> str:
    """The command with this number; what was typed where that is no number, or itself one."""
    if typed in commands or not re.fullmatch("[0-9]{1,4}", typed):
        return typed
    return commands[int(typed) - 1] if 1 <= int(typed) <= len(commands) else typed


def _is_beyond(typed: str, commands: Sequence[str]) -> bool:
    """Whether it is a number, and none of those shown: a slip, which shall cost no turn."""
    return bool(commands and re.fullmatch("[0-9]{1,4}", typed)) and chosen(typed, commands) == typed


def as_response(template: Template, typed: str, commands: Sequence[str]) -> str:
    """What was typed, if it is a response or tries to be one; a command becomes a response without
    a thought."""
    if template.project(typed, commands).valid:
        return typed
    is_command = _WHOLE.fullmatch(typed) or not _TAG.search(typed)
    return template.respond(typed, "") if is_command else typed
