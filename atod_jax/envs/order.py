"""The order of tasks that come from files."""

import hashlib
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def shuffled(items: Iterable[T], name: Callable[[T], str]) -> tuple[T, ...]:
    """The items in an order that looks random and depends on their names alone.

    Files list tasks by type or by set; so ordered, the first n of any split are a fair sample of
    it, the same ones whoever wrote the file and in whatever order.

    Raises:
      ValueError: two items have the same name.
    """
    named: dict[str, T] = {}
    for item in items:
        if (own := name(item)) in named:
            raise ValueError(f"the id {own[:80]!r} occurs twice; give every task one of its own")
        named[own] = item
    return tuple(named[n] for n in sorted(named, key=lambda n: (_hash(n), n)))


def _hash(name: str) -> bytes:
    return hashlib.md5(name.encode(errors="surrogatepass"), usedforsecurity=False).digest()
