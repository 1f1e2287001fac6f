"""Texts of environments, data, models and files, made harmless for those who read them.

Such a text may hold anything: half of a surrogate pair, which no file can store; escape sequences,
which a terminal carries out; marks that turn lines around; and it may be of any length.
"""

import json
import re
from pathlib import Path
from typing import Any

SHOWN = 20_000  # characters of one text that people are shown
_SURROGATE = re.compile("[\ud800-\udfff]")
# control characters of ASCII and Latin-1 but for tab, line feed and carriage return
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
# what a terminal or an editor obeys: those, carriage returns, marks of direction and of lines
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def whole(text: str) -> str:
    """The text with U+FFFD in place of lone surrogates, so that it can be stored."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def plain(text: str) -> str:
    """The text without control characters and lone surrogates: for a prompt."""
    return _CONTROL.sub("", whole(text))


def visible(text: str, *, longest: int = SHOWN) -> str:
    r"""The beginning of the text, with `\x1b` and the like in place of what would be obeyed: for
    people. Line feeds and tabs stay."""
    cut = f" … ({len(text) - longest} more characters)" if len(text) > longest else ""
    shown = whole(text[:longest].replace("\r\n", "\n"))
    return _OBEYED.sub(lambda match: ascii(match[0])[1:-1], shown) + cut


def one_line(text: str, *, longest: int = 500) -> str:
    """The same in a single line."""
    return visible(text.replace("\r\n", " ").replace("\n", " "), longest=longest)


def of_error(error: Exception) -> str:
    """The kind of an error and what it says, in one short line."""
    return one_line(f"{type(error).__name__}: {error}", longest=200)


def read_object(file: Path, fix: str) -> dict[str, Any]:
    """The JSON object that a file holds, whatever its encoding; `fix` ends the error.

    Raises:
      OSError: it cannot be read.
      ValueError: it holds anything else, such as the first half of one.
    """
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON ({error}); {fix}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds no JSON object but {found!r:.40}; {fix}")
    return found
