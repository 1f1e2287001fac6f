"""How well a purchase answers a goal: from 0 to 1.

The kind of product scales the share of wanted attributes, options and price that are met. Which
words of a title are nouns is decided by `nouns`, a parameter: published scores used a statistical
tagger, the default here needs none and takes every longer word that is not a function word. The
two can differ only in how alike another product's title looks, never for the goal's own product.
"""

import functools
import re
from collections.abc import Callable, Collection, Iterable, Sequence

from rapidfuzz import fuzz, utils

from atod_jax.envs.webshop.catalogue import Product
from atod_jax.envs.webshop.goals import Goal

Nouns = Callable[[str], Sequence[str]]

_ALIKE = 85  # two phrases alike score more
_NO_NOUN = 0.2  # title score where the wanted title has no noun
_LATIN_1 = dict.fromkeys(range(128, 256))

# In this order: a value is reduced to the first of these that it contains.
_COLOURS = """
    alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown
    burgundy camel camo caramel champagne charcoal cheetah chestnut chocolate christmas coffee
    cognac copper coral cranberry cream crystal dark denim eggplant elephant espresso fuchsia
    gold granite grape graphite grass gray green grey heather indigo ivory ivy khaki lavender
    lemon leopard light lilac lime magenta maroon mauve merlot midnight mint mocha multicolor
    mushroom mustard natural navy nude olive orange peach pewter pink plum purple rainbow red
    rose royal rust sand sapphire seashell silver skull slate steel stone stonewash sunflower
    tan taupe teal tiger turquoise violet walnut wheat white wine yellow
"""
COLOURS = tuple(_COLOURS.split())
_FUNCTION_WORDS = """
    the and for with from that this are was were has have had not but you your our their its his
    her she him they them who what which when where how all any can will would should could may
    into onto over under out off per via than then too very more most some such
    only own same
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())


@functools.lru_cache(maxsize=4096)
def longer_words(title: str) -> tuple[str, ...]:
    """The stand-in for a tagger: lower-case words of three letters or more, no function words."""
    words = re.findall(r"\w+", title.lower())
    return tuple(w for w in words if w.isalpha() and len(w) > 2 and w not in FUNCTION_WORDS)


def score(
    goal: Goal,
    bought: Product,
    price: float,
    chosen: Iterable[str],
    *,
    nouns: Nouns = longer_words,
) -> float:
    """The score of buying `bought` at `price` with the option values `chosen`."""
    met = sum(has_attribute(bought, wanted) for wanted in goal.attributes)
    met += options_met(goal, chosen) + (price <= goal.price_limit)
    asked = len(goal.attributes) + len(goal.options) + 1
    return met / asked * kind_factor(goal, bought, nouns)


def kind_factor(goal: Goal, bought: Product, nouns: Nouns) -> float:
    """1 for the right kind of product, less (0.5, 0.1, 0) the less its title says so."""
    title = title_score(nouns(goal.title), nouns(bought.title))
    if title < 0.1:
        return 0.1 if title else 0.0
    shared = _categories(goal.product_category) & _categories(bought.product_category)
    return 1.0 if goal.query == bought.query or len(shared) >= 2 or title > 0.2 else 0.5


def title_score(wanted: Sequence[str], bought: Collection[str]) -> float:
    """The share of the wanted title's nouns that the bought title holds."""
    return len(set(wanted) & set(bought)) / len(wanted) if wanted else _NO_NOUN


def _categories(path: str) -> set[str]:
    return {part.strip() for part in path.split("\u203a")}


def has_attribute(product: Product, wanted: str) -> bool:
    """Whether an attribute of the product is like `wanted`, or its texts contain it."""
    if any(alike(attribute, wanted) for attribute in product.attributes):
        return True
    texts = (product.title, " ".join(product.bullets), product.description)
    return any(wanted in text.lower() for text in texts)


def options_met(goal: Goal, chosen: Iterable[str]) -> int:
    """How many wanted options have a chosen value like them.

    A wanted option is compared by name and value, printed as a pair, so values that are part of
    it match too; only a value that is a colour word stands for itself. People's requests hold
    values alone.
    """
    bought = [_colour_in(value) for value in chosen]
    wanted = [_colour_in(option) for option in goal.options]
    return sum(any(alike(value, want) for value in bought) for want in wanted)


def _colour_in(value: str | tuple[str, str]) -> str:
    """The first colour that is part of a text or one of a pair, else the whole, printed."""
    return next((colour for colour in COLOURS if colour in value), str(value))


@functools.lru_cache(maxsize=65536)
def alike(a: str, b: str) -> bool:
    """Whether the shared words of two phrases make up most of one of them."""
    return round(fuzz.token_set_ratio(_plain(a), _plain(b))) > _ALIKE


def _plain(text: str) -> str:
    return utils.default_process(text.translate(_LATIN_1))
