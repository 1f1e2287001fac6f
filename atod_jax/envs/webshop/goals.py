"""What a shopper asks for: every choice of options of every product that has a request, or what
people have asked for in their own words."""

import dataclasses
import math
import random
from collections.abc import Sequence

from atod_jax.envs.webshop.catalogue import Product, Request

_PRICE_SEED, _ORDER_SEED = 42, 233
NO_LIMIT = 1_000_000.0  # price limit where the product is dearer than all steps below
_LIMITS = tuple(10.0 * step for step in range(1, 100))


@dataclasses.dataclass(frozen=True)
class Goal:
    """One wish; `instruction` is all a player is told of it."""

    asin: str
    instruction: str
    attributes: tuple[str, ...]
    options: tuple[str | tuple[str, str], ...]  # (name, value), or a person's value alone
    price_limit: float
    title: str
    query: str
    category: str
    product_category: str


def make_rng() -> random.Random:
    """The draws of prices, then of price limits, from which the reference goals were made."""
    rng = random.Random(_PRICE_SEED)
    rng.getrandbits(32)  # the reference run drew one word before the first price
    return rng


def draw_price(product: Product, rng: random.Random) -> float:
    """What the product costs: drawn once where its price is a range."""
    low, high = product.prices[0], product.prices[-1]
    return rng.uniform(low, high) if len(product.prices) > 1 else low


def choices(product: Product) -> int:
    """In how many ways the options of a product can be chosen."""
    return math.prod(map(len, product.options.values()))


def draw_limit(price: float, rng: random.Random) -> float:
    """The price limit of all goals for a product: one of the next four multiples of ten."""
    above = [limit for limit in _LIMITS if limit > price][:4]
    return max(rng.sample(above, 2)) if len(above) > 1 else NO_LIMIT


def shuffled(count: int) -> list[int]:
    """The order in which `count` goals, made product by product, are numbered."""
    order = list(range(count))
    random.Random(_ORDER_SEED).shuffle(order)
    return order


def make_goal(product: Product, choice: int, price_limit: float) -> Goal:
    """The goal that asks for the `choice`-th combination of the product's options."""
    names = sorted(product.options)
    values = _nth([product.options[name] for name in names], choice)
    options = tuple(zip(names, values, strict=True))
    wish = ", and ".join(f"{name}: {value}" for name, value in options)
    request = product.request + (f" with {wish}" if wish else "")
    return _goal(product, Request(request, product.wanted, options), price_limit)


def make_persons_goal(product: Product, number: int, price_limit: float) -> Goal:
    """The goal of the `number`-th person who asked for the product."""
    return _goal(product, product.people[number], price_limit)


def _goal(product: Product, request: Request, price_limit: float) -> Goal:
    limited = price_limit < NO_LIMIT
    limit = f", and price lower than {price_limit:.2f} dollars" if limited else ""
    return Goal(
        asin=product.asin,
        instruction=request.text + limit,
        attributes=request.attributes,
        options=request.options,
        price_limit=price_limit,
        title=product.title,
        query=product.query,
        category=product.category,
        product_category=product.product_category,
    )


def _nth(values: Sequence[Sequence[str]], number: int) -> tuple[str, ...]:
    """The `number`-th of itertools.product(*values), found without counting up to it."""
    chosen: list[str] = []
    for column in reversed(values):
        number, index = divmod(number, len(column))
        chosen.append(column[index])
    return tuple(reversed(chosen))
