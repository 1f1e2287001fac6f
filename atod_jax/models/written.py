"""Model folders that we wrote: whether they are as they were, and which may be written over."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from atod_jax.sums import SUMS, changed, listed


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
    others = names - set(listed(folder)) - {SUMS}
    return min(others) if others else "".join(changed(folder)[:1])
