"""Folders that we wrote, to the bit: `SHA256SUMS` lists their files for `sha256sum --check`.

Its first line, a comment to that program, tells it from a list that somebody made of their own.
"""

import contextlib
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SUMS = "SHA256SUMS"
_OURS = "# written by atod_jax"


def seal(folder: Path) -> None:
    """Lists the files of a folder in its SHA256SUMS."""
    (folder / SUMS).write_text(_list(folder), encoding="utf-8")


def is_whole(folder: Path) -> bool:
    """Whether a folder is as it was sealed, with every file, no other one and the list itself.

    Raises:
      OSError: a file cannot be read, or there is no list.
    """
    return (folder / SUMS).read_bytes() == _list(folder).encode()


def is_sealed(folder: Path) -> bool:
    """Whether its list, if it has one, is ours.

    Raises:
      OSError: the list cannot be read.
    """
    with contextlib.suppress(FileNotFoundError):
        return (folder / SUMS).read_bytes().startswith(f"{_OURS}\n".encode())
    return False


def listed(folder: Path) -> dict[str, str]:
    """Name to digest, as in the list of a folder.

    Raises:
      OSError: it has no list that can be read.
    """
    lines = (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    parts = [line.partition("  ") for line in lines if not line.startswith("#")]
    return {name: digest for digest, _, name in parts}


def changed(folder: Path) -> list[str]:
    """The listed files that are missing or not as they were written. They are read whole, some at
    a time: a second per gigabyte or less.

    Raises:
      OSError: there is no list, or a file cannot be read.
    """
    written = listed(folder)
    files = [folder / name for name in written]
    found = _digests([file for file in files if file.is_file() and not file.is_symlink()])
    return sorted(name for name, digest in written.items() if found.get(name) != digest)


def digest(file: Path) -> str:
    """SHA-256 of the content of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _list(folder: Path) -> str:
    files = sorted(path for path in folder.iterdir() if path.name != SUMS)
    sums = [f"{digest}  {name}" for name, digest in _digests(files).items()]
    return "\n".join([_OURS, *sums, ""])


def _digests(files: Sequence[Path]) -> dict[str, str]:
    with ThreadPoolExecutor() as pool:
        return dict(zip((file.name for file in files), pool.map(digest, files), strict=True))
