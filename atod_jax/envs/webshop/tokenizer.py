"""The small tokenizer of the built-in shop models.

Pieces are the names of the generated shop with their leading space, so that a tiny model can copy
them from a compact prompt into a command, and single characters.

    python -m atod_jax.envs.webshop.tokenizer --out DIR
"""

from collections.abc import Iterable

from atod_jax.envs import vocabulary
from atod_jax.envs.vocabulary import CHARACTERS, END, PAD, START
from atod_jax.envs.webshop import generate

_PHRASES = (
    "<think>|</think>|want:|\nas:| under| with|search|page|item:|chosen:| nothing| seen|other"
    "|click| buy now| < prev| next >| back to search| description| features| reviews"
    "|color:|size:| color| size| to"
)


def _names() -> Iterable[str]:
    """Everything the generated shop calls something, in lower case."""
    aisles = generate.AISLES
    yield from (kind for aisle in aisles for kind in aisle.kinds)
    yield from (attribute for aisle in aisles for attribute in aisle.attributes)
    yield from (value for values in generate.SIZES.values() for value in values)
    yield from generate.COLOURS
    yield from (brand.lower() for brand in generate.BRANDS)
    yield from (generate.product_id(n).lower() for n in range(generate.PRODUCTS))
    highest = generate.DEAREST + generate.SPREAD
    yield from (f"${price}.0" for price in range(generate.CHEAPEST, highest + 1))
    yield from (str(limit) for limit in range(10, generate.DEAREST + 60, 10))
    yield from map(str, range(1, 6))  # pages


def pieces() -> tuple[str, ...]:
    """All pieces of the vocabulary in id order, the byte tokens excluded."""
    names = (f" {name}" for name in _names())
    return tuple(dict.fromkeys([PAD, START, END, *CHARACTERS, *_PHRASES.split("|"), *names]))


if __name__ == "__main__":
    vocabulary.main(pieces())
