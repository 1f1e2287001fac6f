"""A small made-up shop, for training and trying things out without any download.

Within one kind of product no two have the same three attributes, and titles name them, so every
goal can be met from what the pages show.
"""

import itertools
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

from atod_jax.envs.webshop import catalogue
from atod_jax.envs.webshop.catalogue import Product

PER_KIND = 8  # products of each kind
_RANGE_SHARE = 0.15  # of the products cost more in some versions than in others
CHEAPEST, DEAREST, SPREAD = 8, 150, 20  # dollars; the last: of a price range

SIZES = {
    "wear": ("small", "medium", "large", "x-large", "xx-large"),
    "feet": ("7", "8", "9", "10", "11", "12"),
    "cloth": ("16 x 16 inch", "20 x 20 inch", "24 x 36 inch", "30 x 40 inch"),
    "pack": ("pack of 1", "pack of 2", "pack of 4", "pack of 6"),
}
COLOURS = ("black", "blue", "brown", "gray", "green", "ivory", "navy", "pink", "red", "white")
BRANDS = ("Alderon", "Bexley", "Corvane", "Dunmore", "Estrella", "Fennick", "Halvard", "Junora")


class Aisle(NamedTuple):
    """A part of the shop."""

    category: str
    path: str  # of categories
    sizes: str  # a key of SIZES, "" for products of one size
    kinds: tuple[str, ...]  # search phrases
    attributes: tuple[str, ...]


AISLES = (
    Aisle(
        "fashion",
        "Clothing, Shoes & Jewelry \u203a Clothing",
        "wear",
        ("rain jackets", "polo shirts", "hooded sweatshirts", "yoga pants", "pajama sets", "vests"),
        (
            "machine wash", "slim fit", "long sleeve", "quick drying", "tummy control",
            "elastic waist", "wash cold", "polyester spandex",
        ),
    ),
    Aisle(
        "fashion",
        "Clothing, Shoes & Jewelry \u203a Shoes",
        "feet",
        ("running shoes", "ankle boots", "slippers", "hiking sandals", "loafers", "rain boots"),
        (
            "rubber sole", "arch support", "slip resistant", "memory foam", "steel toe",
            "faux fur", "open toe", "light weight",
        ),
    ),
    Aisle(
        "garden",
        "Home & Kitchen \u203a Bedding",
        "cloth",
        ("pillow covers", "area rugs", "window curtains", "throw blankets", "bath mats", "towels"),
        (
            "machine washable", "super soft", "double sided", "fade resistant", "easy clean",
            "non slip", "exquisite workmanship", "eco friendly",
        ),
    ),
    Aisle(
        "grocery",
        "Grocery & Gourmet Food \u203a Snacks",
        "pack",
        ("trail mixes", "granola bars", "herbal teas", "dried fruits", "crackers", "nut butters"),
        (
            "gluten free", "sugar free", "non gmo", "plant based", "kosher certified",
            "low sodium", "dairy free", "high protein",
        ),
    ),
    Aisle(
        "beauty",
        "Beauty & Personal Care \u203a Skin Care",
        "pack",
        ("face creams", "body lotions", "lip balms", "hair masks", "hand soaps", "bath salts"),
        (
            "cruelty free", "paraben free", "long lasting", "tea tree", "sensitive skin",
            "essential oils", "fragrance free", "fine lines",
        ),
    ),
    Aisle(
        "electronics",
        "Electronics \u203a Accessories",
        "",
        ("phone cases", "desk lamps", "headphones", "bluetooth speakers", "usb hubs", "tripods"),
        (
            "fast charging", "water resistant", "noise cancelling", "hands free", "high speed",
            "easy install", "carrying case", "heavy duty",
        ),
    ),
)  # fmt: skip
PRODUCTS = PER_KIND * sum(len(aisle.kinds) for aisle in AISLES)


def product_id(number: int) -> str:
    """The id of the `number`-th product of a generated shop."""
    return f"B{number:04d}"


def products(seed: int) -> Iterator[Product]:
    """The products of the shop of that seed."""
    made = list(_rows(random.Random(f"shop {seed}")))
    notes = {row["asin"]: note for row, note in made}
    return catalogue.products((row for row, _ in made), notes, source="generated products")


def _rows(rng: random.Random) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(raw row, note with attributes and request) of every product, in a mixed order."""
    plans = [
        (aisle, kind, attributes)
        for aisle in AISLES
        for kind in aisle.kinds
        for attributes in rng.sample(list(itertools.combinations(aisle.attributes, 3)), PER_KIND)
    ]
    rng.shuffle(plans)
    for number, (aisle, kind, attributes) in enumerate(plans):
        attributes = tuple(rng.sample(attributes, 3))
        yield _row(rng, product_id(number), aisle, kind, attributes), _note(kind, attributes)


def _row(
    rng: random.Random, asin: str, aisle: Aisle, kind: str, attributes: tuple[str, ...]
) -> dict[str, Any]:
    price = rng.randint(CHEAPEST, DEAREST)
    dearer = f" to ${price + rng.randint(1, SPREAD)}.0" if rng.random() < _RANGE_SHARE else ""
    brand = rng.choice(BRANDS)
    options = {"color": _sample(rng, COLOURS)}
    if aisle.sizes:
        options["size"] = _sample(rng, SIZES[aisle.sizes])
    return {
        "asin": asin,
        "name": f"{brand} {kind.title()}, {', '.join(attributes)}",
        "full_description": f"{brand} has made {kind} since {rng.randint(1950, 2015)}.",
        "small_description": [f"Comes with {attribute}" for attribute in attributes],
        "pricing": f"${price}.0{dearer}",
        "customization_options": options,
        "query": kind,
        "category": aisle.category,
        "product_category": f"{aisle.path} \u203a {kind.title()}",
    }


def _sample(rng: random.Random, values: tuple[str, ...]) -> list[dict[str, str]]:
    """Two to four of the values, in their order."""
    chosen = set(rng.sample(values, rng.randint(2, 4)))
    return [{"value": value} for value in values if value in chosen]


def _note(kind: str, attributes: tuple[str, ...]) -> dict[str, Any]:
    first, second, third = attributes
    return {
        "attributes": list(attributes),
        "instruction": f"Find me {first}, {second} {kind} with {third}",
        "instruction_attributes": list(attributes),
    }
