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
_LONGEST_ROW = 2**24  # characters; what is longer was not closed
# the first number of a price, with the marks that people put into it
_NUMBER = re.compile(r"\d[\d.,]*|\.\d+")
_RANGE = re.compile(r"\bto\b|[-\u2013]")
_DECIMAL_COMMA = re.compile(r"(\d{1,3}(\.\d{3})+|\d+),\d{1,2}")


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
                if at_end or len(text) > _LONGEST_ROW:
                    where = f"{path}:{line + error.lineno - 1}"
                    raise ValueError(f"{where}: not a product: {error.msg}") from None
                more = _read(file, path, line)
                text, at_end = text + more, not more
                continue
            except (
                RecursionError,
                ValueError,
            ) as error:  # too deep; numbers of thousands of digits
                raise ValueError(f"{path}:{line}: not a product: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{line}: expected an object, found {text[:40]!r}")
            yield jsonl.storable(row)
            line += text.count("\n", 0, end)
            text = text[end:]


def _read(file: TextIO, path: Path, line: int) -> str:
    try:
        return file.read(_BLOCK)
    except (*jsonl.DAMAGE, OSError) as error:
        raise ValueError(
            f"{path}: cannot be read after line {line}: {error}; copy the file again"
        ) from None


def read_notes(path: Path) -> dict[str, Any]:
    """Attributes and requests by product id: one JSON object, plain or .gz.

    Raises:
      ValueError: damaged or cut-off content, with file and line where there is one.
    """
    try:
        with jsonl.open_text(path) as file:
            notes = jsonl.storable(json.load(file))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply; correct it") from None
    except (*jsonl.DAMAGE, OSError) as error:
        raise ValueError(f"{path}: cannot be read: {error}; copy the file again") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
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
            asin = jsonl.filled(row, "asin")
            if asin in seen or asin == "nan" or len(asin) > _LONGEST_ID:
                continue
            if not (asin.isascii() and asin.isprintable()):
                raise ValueError(f"asin={asin!r}: expected letters and digits")
            seen.add(asin)
            yield _product(row, notes.get(asin) or {}, people.get(asin) or ())
        except KeyError as error:
            raise ValueError(f"{source}: product {number} has no {error}") from None
        except (TypeError, AttributeError, ValueError, IndexError) as error:
            raise ValueError(f"{source}: product {number} is malformed: {error}") from None


def _product(
    row: Mapping[str, Any], note: Mapping[str, Any], people: Sequence[Mapping[str, Any]]
) -> Product:
    attributes, request, wanted = _read_note(note)
    return Product(
        asin=row["asin"],
        bullets=_bullets(row),
        title=_text(row, "name"),
        description=_text(row, "full_description"),
        prices=_prices(row.get("pricing")),
        options=_options(row["customization_options"] or {}),
        attributes=attributes,
        query=_text(row, "query").lower().strip(),
        category=_text(row, "category") or "unknown",
        product_category=_text(row, "product_category"),
        request=request,
        wanted=wanted,
        people=_read_people(people),
    )


def _text(record: Mapping[str, Any], key: str) -> str:
    """A text; null is an empty one."""
    return "" if record[key] is None else jsonl.text_of(record, key)


def _texts(record: Mapping[str, Any], key: str, default: tuple[str, ...]) -> tuple[str, ...]:
    """A list of texts, `default` where there is none."""
    return jsonl.texts_of(record, key) if record.get(key) is not None else default


def _bullets(row: Mapping[str, Any]) -> tuple[str, ...]:
    given = row["small_description"]
    if isinstance(given, list):
        given = [bullet for bullet in given if bullet is not None]
        return jsonl.texts_of({"small_description": given}, "small_description")
    return (_text(row, "small_description"),)


def _read_note(note: Any) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    """(attributes, request, the attributes it names) of a product."""
    try:
        request = _text(note, "instruction") if "instruction" in note else ""
        wanted = _texts(note, "instruction_attributes", ())
        return _texts(note, "attributes", ("DUMMY_ATTR",)), request, wanted
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"its instructions: {error}") from None


def _read_people(asked: Any) -> tuple[Request, ...]:
    try:
        return tuple(_request(wish) for wish in asked if wish["instruction_attributes"])
    except KeyError as error:
        raise ValueError(f"its requests of people lack {error}") from None
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"its requests of people: {error}") from None


def _request(asked: Mapping[str, Any]) -> Request:
    attributes, options = (
        jsonl.texts_of(asked, key) for key in ("instruction_attributes", "instruction_options")
    )
    return Request(jsonl.text_of(asked, "instruction").strip("."), attributes, options)


def _prices(tag: Any) -> tuple[float, ...]:
    """The price, or the two ends of a range, as shops and people write them: "$1,299.00",
    "$5 to $9.50", "12.99 USD", "1.299,00", 7."""
    if not tag and not isinstance(tag, int | float):
        return (NO_PRICE,)
    if isinstance(tag, str):
        parts = tag.split("$")[1:] if "$" in tag else _RANGE.split(tag)
        found = [match[0] for part in parts if (match := _NUMBER.search(part))]
        if found and len(found) == len(parts):
            return tuple(map(_amount, found[:2]))
    elif not isinstance(tag, bool) and isinstance(tag, int | float) and 0 <= tag < float("inf"):
        return (float(tag),)
    raise ValueError(f"pricing={tag!r:.80}: write it as '$1,299.00' or '$5.00 to $9.00'")


def _amount(number: str) -> float:
    digits = number.rstrip(".,")
    if _DECIMAL_COMMA.fullmatch(digits):
        digits = digits.replace(".", "").replace(",", ".")
    value = float(digits.replace(",", ""))
    if value == float("inf"):
        raise ValueError(f"a price of {len(digits)} digits")
    return value


def _options(raw: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Names and values as pages show them: lower case, " | " for a slash."""
    if not isinstance(raw, Mapping):
        raise ValueError(f"customization_options={raw!r:.80}: expected an object")
    return {
        name.lower(): tuple(
            jsonl.text_of(v, "value").strip().replace("/", " | ").lower()
            for v in jsonl.objects_of(raw, name)
            if v["value"] is not None
        )
        for name, values in raw.items()
        if values is not None
    }
