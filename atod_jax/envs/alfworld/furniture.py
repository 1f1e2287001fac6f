"""What the generated households are made of: rooms, the things in them, and where those may lie.

All names are ALFWorld's own types. The lists are short on purpose: a model with a hundred thousand
parameters must be able to learn every name.
"""

import collections
import dataclasses

LAMP = "DeskLamp"
COPIES = 2  # most items of one type in a room


@dataclasses.dataclass(frozen=True)
class Style:
    """A kind of room; types are ALFWorld's."""

    required: tuple[str, ...]  # receptacles of every such room
    optional: tuple[str, ...]  # a bag to draw the others from: a type may come more than once
    objects: tuple[str, ...]


STYLES = {
    "kitchen": Style(
        ("CounterTop", "Fridge", "Microwave", "SinkBasin"),
        ("Cabinet",) * 3
        + ("Drawer", "Drawer", "Shelf", "Shelf", "CounterTop")
        + ("DiningTable", "GarbageCan", "SideTable"),
        ("Apple", "Bread", "Cup", "Egg", "Knife", "Mug", "Plate", "Potato", "Spoon", "Tomato"),
    ),
    "bathroom": Style(
        ("SinkBasin", "Toilet"),
        ("Cabinet", "Drawer") * 3
        + ("CounterTop", "CounterTop", "Shelf", "Shelf")
        + ("GarbageCan", "SideTable"),
        ("Candle", "Cloth", "SoapBar", "ToiletPaper"),
    ),
    "bedroom": Style(
        ("Bed", "Desk"),
        ("Drawer", "Shelf") * 3 + ("SideTable", "SideTable", "Dresser", "GarbageCan"),
        ("Book", "CellPhone", "KeyChain", "Mug", "Pen", "Pillow", "Watch"),
    ),
    "livingroom": Style(
        ("CoffeeTable", "Sofa"),
        ("Drawer", "Shelf") * 3
        + ("SideTable", "SideTable", "Dresser", "DiningTable", "GarbageCan", "Cabinet"),
        ("Book", "Candle", "CellPhone", "KeyChain", "Pen", "Pillow", "Watch"),
    ),
}

_PLACES = {
    "Apple": "CounterTop DiningTable Fridge GarbageCan Microwave SideTable SinkBasin",
    "Book": "Bed Cabinet CoffeeTable Desk DiningTable Drawer Dresser Shelf SideTable Sofa",
    "Bread": "CounterTop DiningTable Fridge GarbageCan Microwave SideTable",
    "Candle": "Cabinet CoffeeTable CounterTop DiningTable Drawer Dresser Shelf SideTable Toilet",
    "CellPhone": "Bed CoffeeTable Desk DiningTable Drawer Dresser Shelf SideTable Sofa",
    "Cloth": "Cabinet CounterTop Drawer GarbageCan Shelf SideTable SinkBasin Toilet",
    "Cup": "Cabinet CounterTop DiningTable Fridge Microwave Shelf SideTable SinkBasin",
    "Egg": "CounterTop DiningTable Fridge GarbageCan Microwave SideTable SinkBasin",
    "KeyChain": "CoffeeTable Desk DiningTable Drawer Dresser Shelf SideTable Sofa",
    "Knife": "CounterTop DiningTable Drawer SideTable SinkBasin",
    "Mug": "Cabinet CounterTop Desk DiningTable Dresser Fridge Microwave Shelf SideTable SinkBasin",
    "Pen": "CoffeeTable Desk DiningTable Drawer Dresser GarbageCan Shelf SideTable",
    "Pillow": "Bed Sofa",
    "Plate": "Cabinet CounterTop DiningTable Fridge Microwave Shelf SideTable SinkBasin",
    "Potato": "CounterTop DiningTable Fridge GarbageCan Microwave SideTable SinkBasin",
    "SoapBar": "Cabinet CounterTop Drawer GarbageCan Shelf SideTable SinkBasin Toilet",
    "Spoon": "CounterTop DiningTable Drawer SideTable SinkBasin",
    "ToiletPaper": "Cabinet CounterTop Drawer GarbageCan Shelf SideTable Toilet",
    "Tomato": "CounterTop DiningTable Fridge GarbageCan Microwave SideTable SinkBasin",
    "Watch": "CoffeeTable Desk DiningTable Drawer Dresser Shelf SideTable",
    LAMP: "CoffeeTable Desk Dresser Shelf SideTable",
}
PLACES = {kind: tuple(text.split()) for kind, text in _PLACES.items()}


def _names(counts: dict[str, int]) -> tuple[str, ...]:
    return tuple(
        f"{kind.lower()} {n}" for kind in sorted(counts) for n in range(1, counts[kind] + 1)
    )


def _most_receptacles() -> dict[str, int]:
    counts: dict[str, int] = {}
    for style in STYLES.values():
        for kind, n in collections.Counter(style.required + style.optional).items():
            counts[kind] = max(n, counts.get(kind, 0))
    return counts


RECEPTACLE_NAMES = _names(_most_receptacles())
ITEM_NAMES = _names({kind: 1 if kind == LAMP else COPIES for kind in PLACES})
