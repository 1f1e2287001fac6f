"""Files of one JSON object per line, plain or packed with gzip or xz; errors name the line."""

import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO, TypeVar, cast

from atod_jax import texts

T = TypeVar("T")
_OPENERS = {".xz": lzma.open, ".gz": gzip.open}
DAMAGE = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, UnicodeDecodeError)


def open_text(path: Path) -> TextIO:
    """A UTF-8 text file without its byte-order mark, unpacked where it ends in .gz or .xz."""
    return cast(TextIO, _OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8-sig"))


def records(path: str | Path, *, what: str = "file") -> Iterator[tuple[int, Any]]:
    """(line number, what the line holds) of a file of JSON lines, blank ones left out.

    Args:
      path: of the file.
      what: its name in errors.

    Raises:
      FileNotFoundError: no such file.
      PermissionError: it may not be read.
      ValueError: a damaged file, with the line.
    """
    path, number = Path(path), 0
    if not path.is_file():
        raise FileNotFoundError(f"no {what} at {path}; give the path of a .jsonl[.xz|.gz] file")
    try:
        with open_text(path) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, _decoded(line, f"{path}, line {number}")
    except PermissionError:
        raise
    except (*DAMAGE, OSError) as error:
        raise ValueError(
            f"{path}: damaged or cut off after line {number} ({error}); copy the file again"
        ) from None


def _decoded(line: str, place: str) -> Any:
    try:
        return storable(json.loads(line))
    except RecursionError:
        raise ValueError(f"{place}: nested too deeply; correct it") from None
    except ValueError as error:  # also of numbers of thousands of digits
        raise ValueError(
            f"{place}: not JSON ({error}); correct it or copy the file again"
        ) from None


def storable(value: Any) -> Any:
    """What JSON holds, with U+FFFD in place of lone surrogates in its texts."""
    if isinstance(value, str):
        return texts.whole(value)
    if isinstance(value, list):
        return [storable(item) for item in value]
    if isinstance(value, dict):
        return {texts.whole(key): storable(item) for key, item in value.items()}
    return value


def read(path: str | Path, build: Callable[[dict[str, Any]], T]) -> Iterator[T]:
    """What `build` makes of every record, in file order; raises like `records` and `build_at`."""
    for number, record in records(path):
        yield build_at(f"{path}, line {number}", record, build)


def build_at(place: str, record: Any, build: Callable[[dict[str, Any]], T]) -> T:
    """What `build` makes of a record.

    Raises:
      ValueError: `build` refuses it, or it is no object; begins with `place`.
    """
    try:
        if not isinstance(record, dict):
            raise ValueError(f"expected an object, found {type(record).__name__}")
        return build(record)
    except KeyError as error:
        raise ValueError(f"{place}: field {error} is missing") from None
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{place}: {error}") from None


def find(folder: str | Path, name: str) -> Path | None:
    """The file `name` or `name.gz` of a folder, None where it has neither."""
    candidates = (Path(folder) / name, Path(folder) / f"{name}.gz")
    return next((path for path in candidates if path.is_file()), None)


def text_of(record: Mapping[str, Any], key: str) -> str:
    """A text field.

    Raises:
      KeyError: no such field.
      ValueError: it is no text.
    """
    if not isinstance(record[key], str):
        kind = type(record[key]).__name__
        raise ValueError(f"field {key!r} is {kind} ({_short(record[key])}); expected text")
    return record[key]


def filled(record: Mapping[str, Any], key: str) -> str:
    """A text field that says something; raises like `text_of`."""
    if not text_of(record, key).strip():
        raise ValueError(f"the {key} is empty")
    return record[key]


def texts_of(record: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """A field that is a list of texts; raises like `text_of`."""
    found = record[key]
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ValueError(f"{key}={_short(found)}: expected a list of texts")
    return tuple(found)


def objects_of(record: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """A field that is a list of objects; raises like `text_of`."""
    found = record[key]
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise ValueError(f"{key}={_short(found)}: expected a list of objects")
    return found


def _short(value: Any) -> str:
    return texts.one_line(repr(value), longest=80)
