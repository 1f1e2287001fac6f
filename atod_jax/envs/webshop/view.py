"""What a visit has shown so far, read back from its texts alone.

The compact prompt prints exactly a `View`, and the scripted expert decides from exactly a `View`,
so the expert is imitable by construction. Nothing here looks inside the engine.
"""

import dataclasses
import functools
import re

from atod_jax.envs.base import Episode, Observation
from atod_jax.envs.webshop.pages import SEPARATOR

SEARCH_COMMAND = "search[<your query>]"
_PAGE = re.compile(r"Page (\d+) \(Total results: (\d+)\)$")
_LIMIT = re.compile(r", and price lower than (\d+\.\d\d) dollars$")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def read_task(opening: str) -> str:
    """The goal: the third field of a first observation.

    Raises:
      ValueError: the text has no such field.
    """
    fields = opening.split(SEPARATOR)
    if len(fields) < 3 or fields[1] != "Instruction:":
        raise ValueError(f"no instruction in the first observation: {opening[:80]!r}")
    return fields[2]


@dataclasses.dataclass(frozen=True)
class Wish:
    """A goal taken apart."""

    request: str  # the kind of product and its attributes
    options: tuple[tuple[str, str], ...]  # (name, value)
    limit: float  # dollars; infinite where none is stated


@functools.lru_cache(maxsize=4096)
def read_wish(task: str) -> Wish:
    """The parts of a goal sentence; what follows no pattern stays in the request."""
    limit = _LIMIT.search(task)
    text = task[: limit.start()] if limit else task
    text = text.removeprefix("Find me ")
    options: tuple[tuple[str, str], ...] = ()
    before = text.partition(": ")[0]
    request, found, _ = before.rpartition(" with ")
    if found and before != text:
        parts = text[len(request) + len(found) :].split(", and ")
        pairs = (part.partition(": ")[::2] for part in parts)
        options = tuple((name, value) for name, value in pairs)
    else:
        request = text
    return Wish(request, options, float(limit[1]) if limit else float("inf"))


@dataclasses.dataclass(frozen=True)
class Offer:
    """One line of a results page."""

    id: str  # as it is clicked
    title: str
    price: str
    opened: bool  # since the last search

    @property
    def cheapest(self) -> float:
        """The lower end of its price, in dollars."""
        number = _NUMBER.search(self.price)
        return float(number[0]) if number else 0.0


@dataclasses.dataclass(frozen=True)
class View:
    """The open page and what a player must remember to go on."""

    wish: Wish
    kind: str  # search | results | item | other
    page: int = 0  # of the results
    offers: tuple[Offer, ...] = ()
    title: str = ""  # of an item
    price: str = ""  # of an item
    options: tuple[tuple[str, tuple[str, ...]], ...] = ()  # of an item
    chosen: tuple[tuple[str, str], ...] = ()  # options of the item clicked so far
    failed: str = ""  # what the last command clicked in vain


def make_view(episode: Episode) -> View:
    """Rebuilds the `View` of an episode.

    Raises:
      ValueError: the first observation states no goal.
    """
    return dataclasses.replace(_open_page(episode), failed=_failed(episode))


def _open_page(episode: Episode) -> View:
    wish = read_wish(read_task(episode.opening))
    now = episode.current
    fields = now.text.split(SEPARATOR)
    pages = [match for field in fields if (match := _PAGE.match(field))]
    if SEARCH_COMMAND in now.commands:
        return View(wish, "search")
    if pages and "Next >" in fields:
        offers = _read_offers(fields, now.commands, _opened(episode))
        return View(wish, "results", page=int(pages[0][1]), offers=offers)
    if "click[buy now]" in now.commands:
        return _item_view(wish, fields, now, _clicked(episode))
    return View(wish, "other")


def _failed(episode: Episode) -> str:
    """What the last command clicked, where that was not there to be clicked."""
    command = episode.past[-1][1] if episode.past else ""
    same = command.startswith("click[") and episode.past[-1][0] == episode.current.text
    return command[6:-1] if same and command not in episode.current.commands else ""


def _opened(episode: Episode) -> set[str]:
    """Ids of the products clicked since the last search."""
    found: set[str] = set()
    for text, command in episode.past:
        if command.startswith("search["):
            found = set()
        elif " [SEP] Page " in text and command.startswith("click["):
            found.add(command[6:-1])
    return found


def _clicked(episode: Episode) -> list[str]:
    """What was clicked since the open item was reached from the results."""
    clicks: list[str] = []
    for text, command in episode.past:
        if " [SEP] Page " in text:
            clicks = []
        elif command.startswith("click["):
            clicks.append(command[6:-1])
    return clicks


def _read_offers(
    fields: list[str], commands: tuple[str, ...], opened: set[str]
) -> tuple[Offer, ...]:
    """The products of a results page: an id, perhaps a title, a price."""
    first = fields.index("Next >") + 1
    starts = [i for i in range(first, len(fields)) if f"click[{fields[i].lower()}]" in commands]
    found = []
    ends = [*starts[1:], len(fields)] if starts else []  # a search may find nothing
    for start, end in zip(starts, ends, strict=True):
        name, title = fields[start].lower(), SEPARATOR.join(fields[start + 1 : end - 1])
        found.append(Offer(name, title, fields[end - 1], name in opened))
    return tuple(found)


def _item_view(wish: Wish, fields: list[str], now: Observation, clicks: list[str]) -> View:
    first = fields.index("< Prev") + 1
    last = next(i for i in range(len(fields) - 1, 0, -1) if fields[i].startswith("Price: "))
    options: dict[str, tuple[str, ...]] = {}
    name = title = ""
    for field in fields[first:last]:
        if f"click[{field}]" in now.commands and name:
            options[name] = (*options.get(name, ()), field)
        else:
            name = title = field
    chosen = {name: click for click in clicks for name in options if click in options[name]}
    return View(
        wish,
        "item",
        title=title,
        price=fields[last].removeprefix("Price: "),
        options=tuple(options.items()),
        chosen=tuple(chosen.items()),
    )
