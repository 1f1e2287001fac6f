"""A scripted shopper for demonstrations, for checking that goals can be met, and as a baseline.

It decides from a `View` alone. Strategy: search for what the goal says, open the first affordable
product whose title says it all, else the first; choose the wanted options and buy, or go back where
an option is missing.
"""

import re
from collections.abc import Sequence

from atod_jax.envs.base import Episode
from atod_jax.envs.scripted import Decision, Uniform, pick
from atod_jax.envs.webshop.generate import AISLES, COLOURS, PRODUCTS, SIZES, product_id
from atod_jax.envs.webshop.prompts import is_useful
from atod_jax.envs.webshop.view import Offer, View, make_view

_WORD = re.compile(r"\w+")
_LAST_PAGE = 5
VALUES = (*COLOURS, *dict.fromkeys(size for sizes in SIZES.values() for size in sizes))


def decide(view: View) -> Decision:
    """What to do on the open page."""
    if view.kind == "search":
        request = view.wish.request.replace(",", "")
        words = " ".join([request, *(value for _, value in view.wish.options)])
        return Decision(f"search[{words}]", f"look for {request}")
    if view.kind == "results":
        return _pick_offer(view)
    if view.kind == "item":
        return _buy(view)
    return Decision("click[< prev]", "nothing to do here so go back")


def _pick_offer(view: View) -> Decision:
    fresh = [o for o in view.offers if not o.opened and o.cheapest <= view.wish.limit]
    if fresh:
        best = next((offer for offer in fresh if _says_all(offer, view)), fresh[0])
        return Decision(f"click[{best.id}]", f"{best.id} is closest")
    if view.offers and view.page < _LAST_PAGE:
        return Decision("click[next >]", "none of these so go on")
    return Decision("click[back to search]", "none found so search again")


def _says_all(offer: Offer, view: View) -> bool:
    return _words(view.wish.request) - {"with"} <= _words(offer.title)


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))


def _buy(view: View) -> Decision:
    offered, chosen = dict(view.options), dict(view.chosen)
    for name, value in view.wish.options:
        if value not in offered.get(name, ()):
            return Decision("click[< prev]", f"no {name} {value} so go back")
    for name, value in view.wish.options:
        if chosen.get(name) != value:
            return Decision(f"click[{value}]", f"need {name} {value}")
    return Decision("click[buy now]", "all is chosen so buy")


def act(episode: Episode) -> str:
    """The command for the present turn."""
    return decide(make_view(episode)).command


def thought(episode: Episode, command: str) -> str:
    """A short reason for `command`; for one other than the expert's, that it is a try."""
    decision = decide(make_view(episode))
    return decision.thought if command == decision.command else "not sure so try something"


def disturb(rng: Uniform, commands: Sequence[str], *, absent: float = 0.3) -> str:
    """A random exploratory command, for noisy demonstrations.

    With a search bar it looks for any kind of product of the generated shop. Else, with probability
    `absent`, it clicks what may not be there: an option of any product on the page of one, a
    product of that shop elsewhere; else what can be clicked.
    """
    usable = [c for c in commands if c.startswith("click[") and is_useful(c, commands)]
    if not usable:
        return f"search[{pick(rng, [kind for aisle in AISLES for kind in aisle.kinds])}]"
    if rng.random() < absent:
        if "click[buy now]" in commands:
            return f"click[{pick(rng, VALUES)}]"
        return f"click[{product_id(int(rng.random() * PRODUCTS)).lower()}]"
    return pick(rng, usable)
