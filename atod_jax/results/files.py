"""Files that a reader never finds half written."""

import os
import tempfile
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically: a kill leaves the old content or the new.

    The text goes to a second file beside it, to the disk, and then takes the name. The folder is
    made when missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    # half a surrogate pair becomes its escape sequence, which is also its form in JSON
    with partial.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
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
