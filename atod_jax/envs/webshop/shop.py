"""A shop: products, their search index and its goals in arrays, in memory or mapped from files.

Workers that map the same folder share its pages; what a worker has of its own is one score per
product, the products it looked at last and nothing else that grows with the shop.
"""

import contextlib
import functools
import hashlib
import io
import json
import os
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from atod_jax import sums
from atod_jax.envs.bm25 import Allocate, Arrays
from atod_jax.envs.webshop import catalogue, goals
from atod_jax.envs.webshop.catalogue import Product, Request
from atod_jax.envs.webshop.goals import Goal
from atod_jax.envs.webshop.indexing import IndexBuilder
from atod_jax.envs.webshop.search import Index

_FORMAT = 4  # of the files below; older folders are built anew
_TEXTS = "products.bin"  # the products, packed, one behind the other
_KEPT_PRODUCTS = 1024
_MOST_GOALS = 50_000_000  # the full catalogue has a few million


class Shop:
    """What an engine asks for, by product and goal numbers.

    Args:
      arrays: those of `bm25.Index`; `offsets` [N+1] int64 where a product lies in `texts`;
        `prices` [N] float64; `goal_products`, `goal_choices` [G] uint32 and `goal_limits` [G].
      texts: [bytes] uint8, the packed products.
      people: the goals are those of people.
    """

    def __init__(self, arrays: Arrays, texts: np.ndarray, *, people: bool = False):
        self._arrays, self._texts = arrays, texts
        self._make_goal = goals.make_persons_goal if people else goals.make_goal
        self._index = Index(arrays)
        self.product = functools.lru_cache(_KEPT_PRODUCTS)(self._unpack)

    def __len__(self) -> int:
        return len(self._arrays["prices"])

    @property
    def goal_count(self) -> int:
        return len(self._arrays["goal_products"])

    def search(self, query: str) -> Sequence[int]:
        """The products found, best first, at most 50."""
        return self._index.search(query)

    def price(self, number: int) -> float:
        """What a product costs."""
        return float(self._arrays["prices"][number])

    def goal(self, number: int) -> Goal:
        """The goal of that number; IndexError beyond the last."""
        parts = ("goal_products", "goal_choices", "goal_limits")
        product, choice, limit = (self._arrays[name][number] for name in parts)
        return self._make_goal(self.product(int(product)), int(choice), float(limit))

    def _unpack(self, number: int) -> Product:
        start, end = self._arrays["offsets"][number : number + 2]
        return _unpacked(self._texts[start:end].tobytes())


def _packed(product: Product) -> bytes:
    values = [getattr(product, name) for name in Product.__dataclass_fields__]
    return zlib.compress(json.dumps(values).encode(), level=1)


def _unpacked(data: bytes) -> Product:
    stored = json.loads(zlib.decompress(data))
    values = dict(zip(Product.__dataclass_fields__, stored, strict=True))
    for name in ("bullets", "prices", "attributes", "wanted"):
        values[name] = tuple(values[name])
    values["people"] = tuple(
        Request(text, tuple(wanted), tuple(options)) for text, wanted, options in values["people"]
    )
    values["options"] = {name: tuple(options) for name, options in values["options"].items()}
    return Product(**values)


# ----------------------------------------------------------------------------------------- building


def in_memory(products: Iterable[Product]) -> Shop:
    """A shop of these products that lives in this process."""
    arrays: dict[str, np.ndarray] = {}

    def allocate(name: str, length: int, dtype: Any) -> np.ndarray:
        return arrays.setdefault(name, np.empty(length, dtype))

    texts = io.BytesIO()
    _build(products, allocate, texts)
    return Shop(arrays, np.frombuffer(texts.getbuffer(), np.uint8))


def _build(
    products: Iterable[Product], allocate: Allocate, texts: BinaryIO, *, people: bool = False
) -> None:
    """Fills the arrays of a `Shop` in one pass over its products.

    Raises:
      ValueError: no product can be searched for, or none has a request.
    """
    builder, rng = IndexBuilder(), goals.make_rng()
    ids, prices, sizes = [], [], [0]
    # (product, first choice, number of choices): goals that have their price limit in common
    asking: list[tuple[int, int, int]] = []
    for number, product in enumerate(products):
        ids.append(product.asin)
        prices.append(goals.draw_price(product, rng))
        sizes.append(texts.write(_packed(product)))
        builder.add(product.indexed_text)
        if people:
            asking += [(number, person, 1) for person in range(len(product.people))]
        elif product.request:
            ways = goals.choices(product)
            if ways > _MOST_GOALS:
                raise ValueError(
                    f"product {product.asin}: its options make {ways} goals; remove some"
                )
            asking.append((number, 0, ways))
    limits = [goals.draw_limit(prices[number], rng) for number, _, _ in asking]
    if (total := sum(ways for _, _, ways in asking)) > _MOST_GOALS:
        raise ValueError(f"the products make {total} goals, more than {_MOST_GOALS}; remove some")
    if not total:
        raise ValueError("no product has a request, so there is no goal; add instructions")
    builder.finish(np.array(ids, "S"), allocate)
    allocate("prices", len(prices), np.float64)[:] = prices
    np.cumsum(sizes, out=allocate("offsets", len(sizes), np.int64))
    _number_goals(np.array(asking, np.int64), np.array(limits), allocate)


def _number_goals(asking: np.ndarray, limits: np.ndarray, allocate: Allocate) -> None:
    """Every choice of every asking product, in the shuffled order."""
    numbers, first, ways = asking.T
    total = int(ways.sum())
    order = np.array(goals.shuffled(total), np.int64)
    choices = np.arange(total) - np.repeat(np.cumsum(ways) - ways - first, ways)
    allocate("goal_products", total, np.uint32)[:] = np.repeat(numbers, ways)[order]
    allocate("goal_choices", total, np.uint32)[:] = choices[order]
    allocate("goal_limits", total, np.float32)[:] = np.repeat(limits, ways)[order]


# -------------------------------------------------------------------------------------------- files


def from_folder(
    folder: Path, make_products: Callable[[], Iterable[Product]], *, people: bool = False
) -> Shop:
    """The shop in `folder`, built from `make_products()` if it is not there yet, or damaged.

    The folder appears atomically; processes that build it at once do not disturb each other.
    """
    if opened := _open(folder, people=people):
        return opened
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as scratch:
        made = Path(scratch) / folder.name
        made.mkdir()
        with (made / _TEXTS).open("wb") as texts:
            _build(make_products(), functools.partial(_map_new, made), texts, people=people)
        sums.seal(made)
        opened = _mapped(made, people=people)  # stays valid where another process is faster
        _publish(made, folder)
    return opened


def _open(folder: Path, *, people: bool) -> Shop | None:
    """The shop in `folder`; None where there is none, or one that is not as it was written."""
    if not folder.is_dir():
        return None
    try:
        if sums.is_whole(folder):
            return _mapped(folder, people=people)
        reason = "its files are not those that were written"
    except (OSError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
    print(f"shop: {folder} is damaged ({reason}); it is built again", file=sys.stderr, flush=True)
    return None


def _mapped(folder: Path, *, people: bool) -> Shop:
    arrays = {path.stem: _map(path) for path in folder.glob("*.npy")}
    texts = np.memmap(folder / _TEXTS, np.uint8, "r").view(np.ndarray)
    return Shop(arrays, texts, people=people)


def _publish(made: Path, folder: Path) -> None:
    """Puts `made` in the place of `folder`, which is damaged where it is there."""
    with contextlib.suppress(FileNotFoundError):
        folder.rename(made.with_name("damaged"))
    try:
        made.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was faster with the same content
            raise


def _map_new(folder: Path, name: str, length: int, dtype: Any) -> np.ndarray:
    path = folder / f"{name}.npy"
    return np.lib.format.open_memmap(path, "w+", dtype, (length,)).view(np.ndarray)


def _map(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r").view(np.ndarray)  # slices of plain arrays are faster


def cached(folder: Path, *, people: bool = False) -> Shop:
    """The shop whose product files are in `folder`; its index is kept in the user's cache folder,
    under a digest of what is in these files.

    With `people`, the goals are the requests of people, from a file of their own.

    Raises:
      FileNotFoundError: no such folder, or no file of products or of instructions in it.
      ValueError: several such files, or a damaged one.
    """
    items = _find(folder, "products", ("items_shuffle", "products"))
    notes = _find(folder, "instructions", ("items_ins",))
    asked = [_find(folder, "people's requests", ("items_human_ins", "human_ins"))] if people else []

    def make_products() -> Iterable[Product]:
        return catalogue.products(
            catalogue.read_rows(items),
            catalogue.read_notes(notes),
            source=str(items),
            people=catalogue.read_notes(asked[0]) if people else {},
        )

    place = _cache_folder() / _fingerprint(items, notes, *asked)
    try:
        return from_folder(place, make_products, people=people)
    except ValueError as error:
        named = str(folder) in str(error)
        raise error if named else ValueError(f"{folder}: {error}") from None


def _find(folder: Path, what: str, stems: Sequence[str]) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {folder}; set env.webshop.data to one with the shop's files"
        )
    endings = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
    found = [
        path
        for path in sorted(folder.iterdir())
        if path.name.startswith(tuple(stems)) and path.name.endswith(endings)
    ]
    if not found:
        patterns = " or ".join(f"{stem}*.json[l][.gz]" for stem in stems)
        raise FileNotFoundError(f"{folder} has no file of {what} ({patterns})")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{folder} has several files of {what}: {names}; leave one there")
    return found[0]


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if root.startswith("~"):  # whoever runs this has no home
        root = tempfile.gettempdir()
    return Path(root) / "atod_jax" / "webshop"


def _fingerprint(*paths: Path) -> str:
    facts = [(path.suffix, sums.digest(path)) for path in paths]
    return hashlib.blake2b(repr((_FORMAT, facts)).encode(), digest_size=16).hexdigest()
