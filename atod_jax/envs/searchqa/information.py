"""The block in which search results are shown, and how it is read back.

Two forms are in use: "json" holds one JSON object, "plain" (Search-R1) bare lines.
"""

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

FORMS = ("json", "plain")
NOTHING_FOUND = "No passage matches this query."

_BLOCK = re.compile(r"<information>(.*)</information>", re.DOTALL)
_DOC = re.compile(r"^Doc \d+: \"?(.*?)\"?\n(.*)$", re.MULTILINE)
_PLAIN_DOC = re.compile(r"^Doc \d+\(Title: \"?(.*?)\"?\) (.*)$", re.MULTILINE)


class Shown(NamedTuple):
    """A passage as the player reads it."""

    title: str
    text: str


def show(contents: Sequence[str], form: str) -> str:
    """The information block of the passages found, best first."""
    if form == "json":
        lines = "".join(f"Doc {n}: {text.strip()}\n" for n, text in enumerate(contents, 1))
        return f"<information>{json.dumps({'result': lines or NOTHING_FOUND})}</information>"
    lines = "".join(_plain_line(n, text) for n, text in enumerate(contents, 1))
    return f"\n\n<information>{(lines or NOTHING_FOUND).strip()}</information>\n\n"


def _plain_line(number: int, contents: str) -> str:
    title, _, text = contents.strip().partition("\n")
    return f"Doc {number}(Title: {title}) {text}\n"


def read(observation: str) -> list[Shown]:
    """The passages of an observation of either form; none where nothing was found or asked."""
    block = _BLOCK.search(observation)
    if not block:
        return []
    if block[1].startswith("{"):
        return [Shown(*pair) for pair in _DOC.findall(json.loads(block[1])["result"])]
    return [Shown(*pair) for pair in _PLAIN_DOC.findall(block[1])]
