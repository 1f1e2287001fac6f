"""Files that a reader never finds half written."""

import os
import tempfile
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically, see `write_bytes`."""
    # half a surrogate pair becomes its escape sequence, which is also its form in JSON
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically: a kill leaves the old content or the new.

    The content goes to a second file beside it, to the disk, and then takes the name. The folder is
    made when missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def make_folder(path: Path) -> None:
    """Makes a folder where it is missing, and tries it: before the work, not after it.

    Raises:
      OSError: nothing can be written there; names the place.
    """
    path.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=path).close()


def require_place(file: Path, flag: str) -> None:
    """Tries whether a file can be written there: before the work, not after it.

    Raises:
      ValueError: it cannot; names the flag.
    """
    if file.is_dir():
        raise ValueError(f"{flag}={file} is a folder; name a file")
    try:
        make_folder(file.parent)
    except OSError as error:
        raise ValueError(f"{flag}={file} cannot be written ({error.strerror})") from error
