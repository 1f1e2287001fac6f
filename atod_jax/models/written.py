"""Model folders that we wrote: whether they are as they were, and which may be written over."""

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from atod_jax.sums import SUMS, changed, is_sealed, listed


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
    for name in changed(folder) if (folder / SUMS).is_file() else []:
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
    folder = _place(path, key)
    for other in (_place(other, key) for other in kept):
        if folder == other or folder in other.parents:
            raise ValueError(f"{key}={path} holds {other}, which this run needs; name a new folder")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{key}={path} is a file; name a folder")
    if folder.is_dir() and (foreign := _foreign(folder)):
        raise ValueError(
            f"{key}={path} holds {foreign}, which no export has written; name a new folder, or "
            "empty this one"
        )
    if os.path.ismount(folder):  # it could not be renamed
        raise ValueError(f"{key}={path} is a file system of its own; name a folder in it")
    there = next(parent for parent in folder.parents if parent.exists())
    try:
        os.rmdir(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=there))
    except OSError as error:
        raise ValueError(
            f"{key}={path}: {folder.name} cannot be written in {there} ({error.strerror}); name "
            "another folder"
        ) from error
    if folder == Path.cwd() or folder in Path.cwd().parents:
        raise ValueError(f"{key}={path} is the folder you are in; name one below it, such as model")
    return folder


def _place(path: str | Path, key: str) -> Path:
    try:
        return Path(path).expanduser().resolve()
    except RuntimeError as error:  # links in a circle, the home of nobody
        raise ValueError(f"{key}={path}: {error}; name another folder") from error


def _foreign(folder: Path) -> str:
    """Something in a folder that we did not write, or that has changed since; "" for nothing."""
    names = {entry.name for entry in folder.iterdir()}
    if not names:
        return ""
    if not is_sealed(folder):
        return min(names)
    others = names - set(listed(folder)) - {SUMS}
    return min(others) if others else "".join(changed(folder)[:1])
