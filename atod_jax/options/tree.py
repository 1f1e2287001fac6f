"""Trees of options: nested frozen dataclasses to and from plain values, text and help.

A path is the names of an option from the root, "optim.lr". Values are parsed by the types of the
fields, so whoever reads a section gets exactly what it declares.
"""

import dataclasses
import difflib
import functools
import itertools
import math
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from atod_jax.options.field import SEED, SIZES, About, about

T = TypeVar("T")
Plain = dict[str, Any]  # nested; leaves are numbers, words, booleans and tuples of them


class Leaf(NamedTuple):
    """One option of a tree."""

    path: str
    value: Any
    type: Any  # as annotated
    about: About


def leaves(section: Any, prefix: str = "") -> Iterator[Leaf]:
    """Every option of a section, in the order in which they are declared."""
    hints = _hints(type(section))
    for field in dataclasses.fields(section):
        value, path = getattr(section, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{path}.")
        else:
            yield Leaf(path, value, hints[field.name], about(field))


def to_plain(section: Any) -> Plain:
    """A section as nested dicts, by field name."""
    return {
        f.name: to_plain(value) if dataclasses.is_dataclass(value) else value
        for f in dataclasses.fields(section)
        for value in [getattr(section, f.name)]
    }


def parse(
    default: T,
    values: Mapping[str, Any],
    prefix: str = "",
    *,
    known: Mapping[str, str] | None = None,
) -> T:
    """The section with these values in place of the defaults.

    Args:
      default: an instance; its class says which options there are and of which type.
      values: nested, by field name; what is missing keeps its default.
      prefix: path of the section, with its dot, for messages.
      known: path -> meaning of the options that may have been meant; None: those of the section.

    Raises:
      ValueError: one line per problem: an unknown option with the nearest one, a value of another
        type or one that breaks a rule. Each names path, value and what to give.
    """
    if known is None:
        known = {leaf.path: leaf.about.meaning for leaf in leaves(default, prefix)}
    section, problems = _parsed(default, values, prefix, known)
    if problems:
        raise ValueError("\n".join(problems))
    return section


def _parsed(
    default: Any, values: Mapping[str, Any], prefix: str, known: Mapping[str, str]
) -> tuple[Any, list[str]]:
    fields = {f.name: f for f in dataclasses.fields(default)}
    problems = [unknown(f"{prefix}{k}", known) for k in values if k not in fields]
    hints, found = _hints(type(default)), {}
    for name in (name for name in fields if name in values):
        path, old = f"{prefix}{name}", getattr(default, name)
        if dataclasses.is_dataclass(old):
            if isinstance(values[name], Mapping):
                found[name], more = _parsed(old, values[name], f"{path}.", known)
            else:
                more = [f"{path}={values[name]!r}: is a group of options; set one of them"]
            problems += more
            continue
        try:
            found[name] = convert(values[name], hints[name])
            checks = about(fields[name]).checks
            broken = [] if SEED in checks else _sizes_broken(found[name])
            broken += [c.rule for c in checks if not c.holds(found[name])]
        except ValueError as error:
            broken = [str(error)]
        problems += [f"{path}={values[name]!r}: {rule}" for rule in broken[:1]]
    if problems:
        return default, problems
    try:
        return dataclasses.replace(default, **found), []
    except ValueError as error:  # of a rule that looks at several fields
        return default, [f"{prefix}{error}"]


def _sizes_broken(value: Any) -> list[str]:
    """The rules of size that a number breaks, or a number in a tuple."""
    numbers = value if isinstance(value, tuple) else (value,)
    pairs = [(SIZES[type(x)], x) for x in numbers if type(x) in SIZES]
    return [size.rule for size, x in pairs if not size.holds(x)]


def convert(value: Any, kind: Any) -> Any:
    """A value as the type of a field: whole numbers are real ones, lists are tuples.

    Raises:
      ValueError: it is of another type or not finite.
    """
    item = _item(kind)
    if item is not None:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ValueError(f"must be several of {_name(item)}, such as (1, 2)")
        return tuple(convert(x, item) for x in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**1000 else math.inf
    if kind in (bool, int, float, str) and type(value) is not kind:
        raise ValueError(f"must be {_name(kind)}")
    if kind is float and isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must be a finite number")
    return expanded(value) if isinstance(value, str) else value


def expanded(text: str) -> str:
    """A path as the shell would give it, which leaves `~` alone behind a `=`."""
    return os.path.expanduser(text) if text == "~" or text.startswith("~/") else text


def from_text(text: str, kind: Any) -> Any:
    """A value as somebody typed it.

    Raises:
      ValueError: it does not read as the type.
    """
    item = _item(kind)
    if item is not None:
        parts = [part.strip() for part in text.strip().strip("()[]").split(",")]
        return tuple(from_text(part, item) for part in parts if part)
    if kind is str:
        return text
    if kind is bool:
        return _truth(text)
    try:
        number = float(text)
        return number if kind is float else int(text)
    except ValueError:
        pass
    if kind is int and re.fullmatch(r"[+-]?\d+(\.0*)?[eE]\+?\d{1,2}", text):
        return int(float(text))  # 1e3
    raise ValueError(f"must be {_name(kind)}")


def _truth(text: str) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in words:
        raise ValueError("must be true or false")
    return words[text.lower()]


def unknown(path: str, known: Mapping[str, str], *, prefix: str = "") -> str:
    """The line that says that there is no such option, with the nearest of those known.

    Args:
      known: path -> meaning.
      prefix: what is typed before a path.
    """
    match = nearest(path, known).replace(" or ", f" or {prefix}")
    hint = f"; did you mean {prefix}{match}?" if match else ""
    return f"{path}: there is no such option{hint}"


def nearest(path: str, known: Mapping[str, str]) -> str:
    """What may have been meant by a path that does not exist; "" where nothing is alike.

    That is where the same last name stands, nearest to the path ("a or b" where several are equally
    near), else the path most like it by its letters and by the words of its meaning.

    Args:
      known: path -> meaning.
    """
    last = path.rpartition(".")[2]
    named = [other for other in known if other.rpartition(".")[2] == last]
    if named:
        shared = {other: _shared_groups(path, other) for other in named}
        best = [other for other in named if shared[other] == max(shared.values())]
        return " or ".join(best[:3])
    words = set(last.split("_"))

    def likeness(other: str) -> float:
        meant = words & set(re.findall(r"\w+", known[other].lower()))
        letters = max(_ratio(path, other), 0.9 * _ratio(last, other.rpartition(".")[2]))
        return letters + 0.5 * len(meant) / len(words)

    likely = max(known, key=likeness, default="")
    return likely if likely and likeness(likely) >= 0.5 else ""


def _shared_groups(a: str, b: str) -> int:
    """How many groups from the root two paths have in common."""
    pairs = zip(a.split(".")[:-1], b.split(".")[:-1], strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _ratio(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        flat |= flatten(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return flat


def unflatten(flat: Mapping[str, Any]) -> Plain:
    """The inverse of `flatten`."""
    tree: Plain = {}
    for path, value in flat.items():
        *groups, name = path.split(".")
        functools.reduce(lambda node, group: node.setdefault(group, {}), groups, tree)[name] = value
    return tree


def show(value: Any) -> str:
    """A value as one types it."""
    if isinstance(value, tuple):
        return ",".join(map(show, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _item(kind: Any) -> Any:
    """The type of the members of a tuple type; None for everything else."""
    if typing.get_origin(kind) is tuple:
        return typing.get_args(kind)[0]
    return None


def _name(kind: Any) -> str:
    if isinstance(kind, types.UnionType):
        return str(kind)
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}
    return names.get(kind, str(kind))
