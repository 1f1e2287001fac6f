"""One visit to the shop: which page is open, what was chosen, and what a command does to it."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from atod_jax.envs.webshop import pages, reward
from atod_jax.envs.webshop.catalogue import Product
from atod_jax.envs.webshop.goals import Goal
from atod_jax.envs.webshop.pages import Page


class Shop(Protocol):
    """What the engine needs of a shop; products are named by their numbers."""

    def search(self, query: str) -> Sequence[int]: ...

    def product(self, number: int) -> Product: ...

    def price(self, number: int) -> float: ...


class Spot(NamedTuple):
    """The page that is open; fields that do not matter on it keep their defaults."""

    kind: str  # search | results | item | sub | done
    number: int = 1  # of the results page
    product: int = -1
    name: str = ""  # of the sub page


def parse_command(command: str) -> tuple[str, str]:
    r"""(verb, argument in lower case) of `verb[argument]`; ("", "") for anything else.

    As the greedy pattern (.+)\[(.+)\] at the start of the text would split it, in linear time.
    """
    line = command.partition("\n")[0]
    end = line.rfind("]")
    start = line.rfind("[", 1, max(end - 1, 1))
    return (line[:start], line[start + 1 : end].lower()) if start > 0 else ("", "")


class Engine:
    """Plays one goal. `page`, `clickables` and `has_search_bar` describe the open page."""

    def __init__(self, shop: Shop, goal: Goal, *, nouns: reward.Nouns = reward.longer_words):
        self._shop, self._goal, self._nouns = shop, goal, nouns
        self._spot = Spot("search")
        self._keywords: tuple[str, ...] = ()
        self._chosen: dict[str, str] = {}
        self._seen: set[str] = set()  # ids of the products looked at
        self.score: float | None = None  # of the purchase, once made
        self._turn_to(self._spot)

    @property
    def has_search_bar(self) -> bool:
        return self._spot.kind == "search"

    @property
    def clickables(self) -> tuple[str, ...]:
        return tuple(self._buttons)

    def step(self, command: str) -> None:
        """Plays one command; what is neither a search nor clickable here changes nothing."""
        if self.score is not None:
            return
        verb, words = parse_command(command)
        if verb == "search":
            self._search(words)
        elif verb == "click" and words in self._buttons and words != "search":
            self._click(words)

    def _search(self, words: str) -> None:
        self._keywords, self._chosen = tuple(words.split()), {}
        self._turn_to(Spot("results"))

    def _click(self, words: str) -> None:
        spot = self._spot
        if words == pages.BUY.lower():
            self._buy()
        elif words == pages.BACK.lower():
            self._keywords, self._chosen, self._seen = (), {}, set()
            self._turn_to(Spot("search"))
        elif words in _MOVES.get(spot.kind, {}):
            self._turn(_MOVES[spot.kind][words])
        elif words in _SUB_PAGES:
            self._turn_to(spot._replace(kind="sub", name=_SUB_PAGES[words]))
        elif spot.kind == "results":
            self._turn_to(spot._replace(kind="item", product=self._shown[words]))
        else:
            self._chosen[self._buttons[words].option] = words
            self._turn_to(spot)

    def _turn(self, step: int) -> None:
        """Pages through the results, or back: from a sub page to the item, from there to them."""
        if self._spot.kind == "sub":
            self._turn_to(self._spot._replace(kind="item"))
            return
        self._chosen = {}
        self._turn_to(Spot("results", self._spot.number + step))

    def _buy(self) -> None:
        number = self._spot.product
        self.score = reward.score(
            self._goal,
            self._shop.product(number),
            self._shop.price(number),
            self._chosen.values(),
            nouns=self._nouns,
        )
        self._turn_to(self._spot._replace(kind="done"))

    def _turn_to(self, spot: Spot) -> None:
        self._spot = spot
        self.page = self._page(spot)
        self._buttons = pages.clickables(self.page)

    def _page(self, spot: Spot) -> Page:
        told = self._goal.instruction
        if spot.kind == "search":
            return pages.search_page(told)
        if spot.kind == "results":
            return self._results(spot.number)
        product = self._shop.product(spot.product)
        if spot.kind == "item":
            self._seen.add(product.asin)
            return pages.item_page(
                told, product, chosen=self._chosen, keywords="+".join(self._keywords)
            )
        if spot.kind == "sub":
            return pages.sub_page(told, product, name=spot.name)
        assert self.score is not None
        return pages.done_page(product.asin, self._chosen, score=self.score)

    def _results(self, number: int) -> Page:
        hits = self._shop.search(" ".join(self._keywords))
        first = (number - 1) * pages.PER_PAGE
        numbers = hits[first : first + pages.PER_PAGE]
        found = [self._shop.product(n) for n in numbers]
        self._shown = {product.asin.lower(): n for product, n in zip(found, numbers, strict=True)}
        return pages.results_page(
            self._goal.instruction, found, number=number, total=len(hits), seen=self._seen
        )


_SUB_PAGES = {name.lower(): name for name in (*pages.SUB_PAGES, "Attributes")}
_MOVES = {
    "results": {pages.PREVIOUS.lower(): -1, pages.NEXT.lower(): 1},
    "item": {pages.PREVIOUS.lower(): 0},
    "sub": {pages.PREVIOUS.lower(): 0},
}
