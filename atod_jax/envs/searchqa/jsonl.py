"""Files of one JSON object per line, plain or packed with gzip, with errors that name the line."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def read(path: str | Path, build: Callable[[dict[str, Any]], T]) -> Iterator[T]:
    """What `build` makes of every record, in file order.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a damaged file or a record that `build` refuses, with file and line.
    """
    for number, record in _records(Path(path)):
        try:
            if not isinstance(record, dict):
                raise ValueError(f"expected an object, found {type(record).__name__}")
            yield build(record)
        except KeyError as error:
            raise ValueError(f"{path}, line {number}: field {error} is missing") from None
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from None


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


def _records(path: Path) -> Iterator[tuple[int, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}; give the path of a .jsonl or .jsonl.gz file")
    opener, number = gzip.open if path.suffix == ".gz" else open, 0
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                yield number, json.loads(line)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: cut off after line {number} ({error}); copy it again") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 near line {number + 1} ({error.reason})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number}: not JSON ({error}); copy it again") from None
