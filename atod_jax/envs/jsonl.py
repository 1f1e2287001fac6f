"""Files of one JSON object per line, plain or packed with gzip or xz; errors name the line."""

import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO, TypeVar, cast

T = TypeVar("T")
_OPENERS = {".xz": lzma.open, ".gz": gzip.open}


def open_text(path: Path) -> TextIO:
    """A UTF-8 text file, unpacked where its name ends in .gz or .xz."""
    return cast(TextIO, _OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8"))


def records(path: str | Path, *, what: str = "file") -> Iterator[tuple[int, Any]]:
    """(line number, what the line holds) of a file of JSON lines; `what` is its name in errors.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a damaged file, with the line.
    """
    path, number = Path(path), 0
    if not path.is_file():
        raise FileNotFoundError(f"no {what} at {path}; give the path of a .jsonl[.xz|.gz] file")
    try:
        with open_text(path) as lines:
            for number, line in enumerate(lines, 1):
                yield number, json.loads(line)
    except (EOFError, OSError, lzma.LZMAError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: damaged or cut off after line {number} ({error}); copy the file again"
        ) from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number}: not JSON ({error}); copy it again") from None


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
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}: {error}") from None


def find(folder: str | Path, name: str) -> Path | None:
    """The file `name` or `name.gz` of a folder, None where it has neither."""
    candidates = (Path(folder) / name, Path(folder) / f"{name}.gz")
    return next((path for path in candidates if path.is_file()), None)


def text_of(record: dict[str, Any], key: str) -> str:
    """A text field.

    Raises:
      KeyError: no such field.
      ValueError: it is no text.
    """
    if not isinstance(record[key], str):
        raise ValueError(f"field {key!r} is {type(record[key]).__name__}; expected text")
    return record[key]
