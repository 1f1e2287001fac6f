"""Model folders that we wrote: what is in them, to the bit, and which may be written over.

`SHA256SUMS` lists every file of such a folder, as `sha256sum --check` reads it.
"""

import hashlib
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SUMS = "SHA256SUMS"


def seal(folder: Path) -> None:
    """Lists the files of a folder in its SHA256SUMS."""
    lines = [f"{digest}  {name}\n" for name, digest in _digests(sorted(folder.iterdir())).items()]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def require_unchanged(folder: Path, key: str) -> None:
    """Compares a folder with its SHA256SUMS; one without is taken as it is.

    People edit the small files of a model, and nobody its weights: those are told of, these are
    refused.

    Args:
      folder: of a model.
      key: the option that named it.

    Raises:
      ValueError: a file of weights has changed.
    """
    changed = _changed(folder) if (folder / SUMS).is_file() else []
    for name in changed:
        said = f"{key}: {folder / name} is not the file that was written (see {SUMS} there)"
        if name.endswith(".safetensors"):
            raise ValueError(f"{said}; restore it, or delete {SUMS} if the change is meant")
        print(f"warning: {said}", file=sys.stderr)


def require_place(path: str | Path, key: str, *, kept: Sequence[str | Path] = ()) -> Path:
    """Where a folder that is to appear as `path` will lie, links followed.

    Args:
      path: not there yet, an empty folder, or one whose whole content we wrote.
      key: the option that named it.
      kept: folders that must stay, such as those the models of the run are in.

    Raises:
      ValueError: something there would be lost, or nothing can be written there.
    """
    folder = Path(path).expanduser().resolve()
    for other in (Path(other).expanduser().resolve() for other in kept):
        if folder == other or folder in other.parents:
            raise ValueError(f"{key}={path} holds {other}, which this run needs; name a new folder")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{key}={path} is a file; name a folder")
    if folder.is_dir() and (foreign := _foreign(folder)):
        raise ValueError(
            f"{key}={path} holds {foreign}, which no export has written; name a new folder, or "
            "empty this one"
        )
    there = next(parent for parent in folder.parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{key}={path}: nothing can be written in {there}; name another folder")
    if folder == Path.cwd() or folder in Path.cwd().parents:
        raise ValueError(f"{key}={path} is the folder you are in; name one below it, such as model")
    return folder


def _foreign(folder: Path) -> str:
    """Something in a folder that we did not write, or that has changed since; "" for nothing."""
    names = {entry.name for entry in folder.iterdir()}
    if not names:
        return ""
    if SUMS not in names:
        return min(names)
    others = names - set(_listed(folder)) - {SUMS}
    return min(others) if others else "".join(_changed(folder)[:1])


def _listed(folder: Path) -> dict[str, str]:
    lines = (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    parts = [line.partition("  ") for line in lines]
    return {name: digest for digest, _, name in parts}


def _changed(folder: Path) -> list[str]:
    listed = _listed(folder)
    files = [folder / name for name in listed]
    found = _digests([file for file in files if file.is_file() and not file.is_symlink()])
    return sorted(name for name, digest in listed.items() if found.get(name) != digest)


def _digests(files: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of files by name, some at a time: of a large model it takes seconds."""
    with ThreadPoolExecutor() as pool:
        return dict(zip((file.name for file in files), pool.map(_digest, files), strict=True))


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
