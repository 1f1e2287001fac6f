"""Products: from the raw rows of a shop file to what a page shows and a purchase is judged by."""

import dataclasses
import json
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from atod_jax.envs import jsonl

NO_PRICE = 100.0  # what a product without a price costs
_BLOCK = 1 << 20  # characters read at a time
_BETWEEN = re.compile(r"[\s,\[\]]*")
_LONGEST_ID = 10


class Request(NamedTuple):
    """How a product is asked for."""

    text: str
    attributes: tuple[str, ...]
    options: tuple[str | tuple[str, str], ...]  # values alone; (name, value) in a made-up request


@dataclasses.dataclass(frozen=True)
class Product:
    """One product, cleaned."""

    asin: str
    title: str
    description: str
    bullets: tuple[str, ...]
    prices: tuple[float, ...]  # one, or the two ends of a range
    options: dict[str, tuple[str, ...]]  # lower-case name -> values in the order they are shown
    attributes: tuple[str, ...]
    query: str  # the search phrase the product was found under
    category: str
    product_category: str  # path of categories, joined by U+203A
    request: str = ""  # how a shopper asks for it; "" makes no goal
    wanted: tuple[str, ...] = ()  # attributes the request names
    people: tuple[Request, ...] = ()  # requests of people, where these are the goals

    @property
    def price_tag(self) -> str:
        return " to ".join(f"${price}" for price in self.prices)

    @property
    def indexed_text(self) -> str:
        """The text a search looks in: title, description, first bullet point and options."""
        options = (f"{name}: {', '.join(values)}" for name, values in self.options.items())
        parts = (self.title, self.description, *self.bullets[:1], ", and ".join(options))
        return " ".join(parts).lower()


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file that is one JSON array or has one object a line, plain or .gz.

    Streams: a file of any size is read with a megabyte or two of memory.

    Raises:
      ValueError: damaged or cut-off content, with file and line.
    """
    decoder = json.JSONDecoder()
    text, line, at_end = "", 1, False
    with jsonl.open_text(path) as file:
        while True:
            between = _BETWEEN.match(text)
            assert between is not None  # it matches always
            start = between.end()
            line += text.count("\n", 0, start)
            text = text[start:]
            try:
                row, end = decoder.raw_decode(text)
            except json.JSONDecodeError as error:
                if at_end and not text:
                    return
                if at_end:
                    where = f"{path}:{line + error.lineno - 1}"
                    raise ValueError(f"{where}: not a product: {error.msg}") from None
                more = _read(file, path, line)
                text, at_end = text + more, not more
                continue
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{line}: expected an object, found {text[:40]!r}")
            yield row
            line += text.count("\n", 0, end)
            text = text[end:]


def _read(file: TextIO, path: Path, line: int) -> str:
    try:
        return file.read(_BLOCK)
    except (UnicodeDecodeError, EOFError, OSError) as error:
        raise ValueError(f"{path}: cannot be read after line {line}: {error}") from None


def read_notes(path: Path) -> dict[str, Any]:
    """Attributes and requests by product id: one JSON object, plain or .gz.

    Raises:
      ValueError: damaged or cut-off content, with file and line where there is one.
    """
    try:
        with jsonl.open_text(path) as file:
            notes = json.load(file)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    except (UnicodeDecodeError, EOFError, OSError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    if not isinstance(notes, dict):
        raise ValueError(f"{path}: expected one object, product id -> attributes and request")
    return notes


def products(
    rows: Iterable[Mapping[str, Any]],
    notes: Mapping[str, Mapping[str, Any]],
    *,
    source: str,
    people: Mapping[str, Sequence[Mapping[str, Any]]] = types.MappingProxyType({}),
) -> Iterator[Product]:
    """The usable products of raw `rows`, each id once.

    Args:
      rows: objects of the products file.
      notes: attributes and requests by product id.
      source: what errors call the rows.
      people: requests of people by product id; those that name no attribute are left out.

    Raises:
      ValueError: a row without a needed key, or with a value that cannot be one; names `source`,
        the number of the row (from 1) and the key.
    """
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        try:
            asin = row["asin"]
            if asin in seen or asin == "nan" or len(asin) > _LONGEST_ID:
                continue
            seen.add(asin)
            yield _product(row, notes.get(asin, {}), people.get(asin, ()))
        except KeyError as error:
            raise ValueError(f"{source}: product {number} has no {error}") from None
        except (TypeError, AttributeError, ValueError, IndexError) as error:
            raise ValueError(f"{source}: product {number} is malformed: {error}") from None


def _product(
    row: Mapping[str, Any], note: Mapping[str, Any], people: Sequence[Mapping[str, Any]]
) -> Product:
    bullets = row["small_description"]
    return Product(
        asin=row["asin"],
        title=row["name"],
        description=row["full_description"],
        bullets=tuple(bullets) if isinstance(bullets, list) else (bullets,),
        prices=_prices(row.get("pricing")),
        options=_options(row["customization_options"] or {}),
        attributes=tuple(note.get("attributes", ("DUMMY_ATTR",))),
        query=row["query"].lower().strip(),
        category=row["category"],
        product_category=row["product_category"],
        request=note.get("instruction") or "",
        wanted=tuple(note.get("instruction_attributes") or ()),
        people=tuple(_request(asked) for asked in people if asked["instruction_attributes"]),
    )


def _request(asked: Mapping[str, Any]) -> Request:
    attributes, options = asked["instruction_attributes"], asked["instruction_options"]
    return Request(asked["instruction"].strip("."), tuple(attributes), tuple(options))


def _prices(tag: str | None) -> tuple[float, ...]:
    if not tag:
        return (NO_PRICE,)
    return tuple(float(re.sub(r"[^\d.]", "", part)) for part in tag.split("$")[1:])[:2]


def _options(raw: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Names and values as pages show them: lower case, " | " for a slash."""
    return {
        name.lower(): tuple(v["value"].strip().replace("/", " | ").lower() for v in values)
        for name, values in raw.items()
        if values is not None
    }
