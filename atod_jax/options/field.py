"""One option: a field of a frozen dataclass with its default, its meaning and the values it takes.

    @dataclasses.dataclass(frozen=True)
    class Optim:
        lr: float = option(1e-6, "learning rate per update", above(0))

A field without `option` is an option too; it only says less of itself.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

T = TypeVar("T")


class Check(NamedTuple):
    """A rule for a value: what it must be, in words that end a sentence, and whether it is."""

    rule: str
    holds: Callable[[Any], bool]


class About(NamedTuple):
    """What an option says of itself."""

    meaning: str = ""  # with its unit, and its source where it has one
    checks: tuple[Check, ...] = ()
    pins: bool = True  # part of what defines a run; False: may change when the run goes on


def option(default: T, meaning: str, *checks: Check, pins: bool = True) -> T:
    """A dataclass field; see `About` for the arguments."""
    return cast(T, dataclasses.field(default=default, metadata={"": About(meaning, checks, pins)}))


def about(field: "dataclasses.Field[Any]") -> About:
    """What a field says of itself; nothing where it was not made by `option`."""
    return field.metadata.get("", About())


def check(section: Any) -> None:
    """Applies the checks of a section's own fields; for `__post_init__`.

    Raises:
      ValueError: a value breaks a rule; names field, value and rule.
    """
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        for one in about(field).checks:
            if not one.holds(value):
                raise ValueError(f"{field.name}={value!r}: {one.rule}")


# ------------------------------------------------------------------- rules


def at_least(low: float, otherwise: str = "") -> Check:
    """x >= low. `otherwise` adds what a special value means, e.g. "0 turns it off"."""
    return Check(_with(f"must be at least {low}", otherwise), lambda x: x >= low)


def above(low: float, otherwise: str = "") -> Check:
    """x > low."""
    return Check(_with(f"must be above {low}", otherwise), lambda x: x > low)


def within(low: float, high: float, otherwise: str = "") -> Check:
    """low <= x <= high."""
    return Check(_with(f"must lie in [{low}, {high}]", otherwise), lambda x: low <= x <= high)


def above_to(low: float, high: float, otherwise: str = "") -> Check:
    """low < x <= high."""
    return Check(_with(f"must lie in ({low}, {high}]", otherwise), lambda x: low < x <= high)


def from_below(low: float, high: float, otherwise: str = "") -> Check:
    """low <= x < high."""
    return Check(_with(f"must lie in [{low}, {high})", otherwise), lambda x: low <= x < high)


def one_of(*choices: str) -> Check:
    """One of the words."""
    named = ", ".join(choice or repr(choice) for choice in choices)
    return Check(f"choose from {named}", lambda x: x in choices)


def each(rule: Check) -> Check:
    """Every member of a tuple keeps the rule, and there is one at least."""
    return Check(
        f"every number of it {rule.rule}, and there must be one",
        lambda xs: bool(xs) and all(rule.holds(x) for x in xs),
    )


ASCENDING = Check(
    "give positive lengths in ascending order",
    lambda xs: bool(xs) and xs[0] > 0 and list(xs) == sorted(set(xs)),
)
# of every number of an option, so that it and its products with values of use fit 32 bits
SIZES = {
    int: Check("must be below 2**31 in size", lambda x: abs(x) < 2**31),
    float: Check(
        "must be 0 or between 1e-30 and 1e+30 in size", lambda x: x == 0 or 1e-30 <= abs(x) <= 1e30
    ),
}
# of whole numbers that may be larger than SIZES says
SEED = Check("must be a seed, 0 <= seed < 2**32", lambda x: 0 <= x < 2**32)


def _with(rule: str, otherwise: str) -> str:
    return f"{rule}; {otherwise}" if otherwise else rule
