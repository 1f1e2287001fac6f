"""Plug-ins by name: files beside the shipped ones, entry points, or any importable module.

A plug-in is a module with one constant that says all of it, such as `ALGORITHM = Algorithm(...)`.
A broken or unrelated file harms nobody but whoever names it.
"""

import functools
import importlib
import importlib.metadata
import pkgutil
import sys
from types import ModuleType
from typing import Any, NamedTuple

from atod_jax.options.tree import nearest


class Kind(NamedTuple):
    """One kind of plug-in."""

    what: str  # for people, and the section of the options: "algorithm"
    package: str  # where the shipped ones are; also the group of the entry points
    constant: str  # the name that a module gives it


ALGORITHMS = Kind("algorithm", "atod_jax.algorithms", "ALGORITHM")
ENVIRONMENTS = Kind("env", "atod_jax.envs", "ENVIRONMENT")


@functools.cache
def shipped(kind: Kind) -> dict[str, Any]:
    """The plug-ins in the package, by file name; one that cannot be imported is named and left
    out."""
    package, found = importlib.import_module(kind.package), {}
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda m: m.name):
        try:
            loaded = importlib.import_module(f"{kind.package}.{module.name}")
        except Exception as error:
            print(
                f"warning: {kind.package}.{module.name} is left out: {_in_short(error)}",
                file=sys.stderr,
            )
            continue
        if hasattr(loaded, kind.constant):
            found[module.name] = getattr(loaded, kind.constant)
    return found


def names(kind: Kind) -> list[str]:
    """What can be named without a dot: the shipped ones and the entry points."""
    return sorted({*shipped(kind), *_entry_points(kind)})


def load(kind: Kind, name: str) -> Any:
    """The plug-in of that name: a shipped one, an entry point, or a module ("my_package.mine").

    Raises:
      ValueError: there is none, with the nearest name, or it cannot be imported.
    """
    if name in shipped(kind):
        return shipped(kind)[name]
    if name in _entry_points(kind):
        found = _entry_points(kind)[name].load()
        return getattr(found, kind.constant, found)
    for module in (name, f"{kind.package}.{name}"):  # the second: a broken file says what is wrong
        found = _imported(kind, name, module)
        if hasattr(found, kind.constant):
            return getattr(found, kind.constant)
    match = nearest(name, dict.fromkeys(names(kind), ""))
    hint = f" (did you mean {match!r}?)" if match else ""
    raise ValueError(
        f"{kind.what}.name={name!r}: there is none{hint}; choose from {', '.join(names(kind))}, "
        f"or name a module of yours with a {kind.constant}"
    )


def _imported(kind: Kind, name: str, module: str) -> ModuleType | None:
    """The module, None where there is none of that name."""
    try:
        return importlib.import_module(module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            return None
        raise ValueError(
            f"{kind.what}.name={name!r}: {module} cannot be imported: {_in_short(error)}"
        ) from error


def key(name: str) -> str:
    """The section of the options that belongs to a plug-in: the last part of its name."""
    return name.rpartition(".")[2]


@functools.cache
def _entry_points(kind: Kind) -> dict[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group=kind.package)}


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
