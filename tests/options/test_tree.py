"""Trees of options: what is read, what is refused and with which words, what comes back."""

import dataclasses
import math
import re

import pytest

from atod_jax.options import tree
from atod_jax.options.field import (
    ASCENDING,
    SEED,
    above,
    above_to,
    at_least,
    check,
    each,
    from_below,
    one_of,
    option,
    within,
)


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = option(0.5, "learning rate per update", above(0))
    kind: str = option("a", "which", one_of("a", "b"))


@dataclasses.dataclass(frozen=True)
class Outer:
    """A section with every type of option."""

    count: int = option(3, "how many", at_least(1))
    on: bool = False
    sizes: tuple[int, ...] = option((1, 2), "lengths", ASCENDING)
    shares: tuple[float, float] = (0.0, 1.0)
    seed: int = option(0, "of the draws", SEED, pins=False)
    inner: Inner = Inner()

    def __post_init__(self):
        if self.count > 10 and self.on:
            raise ValueError(f"count={self.count}: at most 10 with on=True")


def test_values_take_the_types_of_their_fields():
    got = tree.parse(Outer(), {"sizes": [4, 8], "shares": (0, 1), "inner": {"rate": 1}})
    assert got == Outer(sizes=(4, 8), shares=(0.0, 1.0), inner=Inner(rate=1.0))
    assert isinstance(got.inner.rate, float)
    assert tree.parse(Outer(), tree.to_plain(got)) == got


def test_the_home_folder_of_a_path_is_written_out(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    texts = ["~/models/a", "~", "a~/b", "~other", "runs/~"]
    want = ["/home/me/models/a", "/home/me", "a~/b", "~other", "runs/~"]
    assert [tree.convert(text, str) for text in texts] == want


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "x.count=0: must be at least 1"),
        ({"count": 1.5}, "x.count=1.5: must be a whole number"),
        ({"count": True}, "x.count=True: must be a whole number"),
        ({"count": 2**31}, f"x.count={2**31}: must be below 2**31 in size"),
        ({"sizes": (1, 2**31)}, f"x.sizes=(1, {2**31}): must be below 2**31 in size"),
        ({"shares": (0, 1e31)}, "x.shares=(0, 1e+31): must be 0 or between 1e-30 and 1e+30"),
        ({"on": 1}, "x.on=1: must be true or false"),
        ({"sizes": (2, 1)}, "x.sizes=(2, 1): give positive lengths in ascending order"),
        ({"sizes": ()}, "x.sizes=(): give positive lengths in ascending order"),
        ({"sizes": 3}, "x.sizes=3: must be several of a whole number"),
        ({"inner": {"rate": math.nan}}, "x.inner.rate=nan: must be a finite number"),
        ({"inner": {"rate": math.inf}}, "x.inner.rate=inf: must be a finite number"),
        (
            {"inner": {"rate": 1e31}},
            "x.inner.rate=1e+31: must be 0 or between 1e-30 and 1e+30 in size",
        ),
        (
            {"inner": {"rate": -1e-31}},
            "x.inner.rate=-1e-31: must be 0 or between 1e-30 and 1e+30 in size",
        ),
        ({"inner": {"rate": 10**400}}, f"x.inner.rate={10**400}: must be a finite number"),
        ({"inner": {"rate": "fast"}}, "x.inner.rate='fast': must be a number"),
        ({"inner": {"rate": 0}}, "x.inner.rate=0: must be above 0"),
        ({"inner": {"kind": "c"}}, "x.inner.kind='c': choose from a, b"),
        ({"inner": 3}, "x.inner=3: is a group of options"),
        ({"seed": -1}, "x.seed=-1: must be a seed"),
        ({"seed": 2**32}, "x.seed=4294967296: must be a seed"),
        ({"coun": 3}, "x.coun: there is no such option; did you mean x.count?"),
        ({"inner": {"ratee": 3}}, "x.inner.ratee: there is no such option; did you mean x.inner.r"),
        ({"learning_rate": 3}, "x.learning_rate: there is no such option; did you mean x.inner.r"),
        ({"count": 11, "on": True}, "x.count=11: at most 10 with on=True"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(values, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as caught:
        tree.parse(Outer(), values, "x.")
    assert "\n" not in str(caught.value)


def test_all_problems_come_at_once():
    with pytest.raises(ValueError, match="count=0") as caught:
        tree.parse(Outer(), {"count": 0, "inner": {"kind": "c"}, "nothing": 1})
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("3", int, 3),
        ("1e3", int, 1000),
        ("1_000", int, 1000),
        ("1e-4", float, 1e-4),
        ("2", float, 2.0),
        ("True", bool, True),
        ("no", bool, False),
        ("a,b", str, "a,b"),
        ("1.0,0.4", tuple[float, ...], (1.0, 0.4)),
        ("(52, 72)", tuple[int, ...], (52, 72)),
        ("[8]", tuple[int, ...], (8,)),
        ("(8,)", tuple[int, ...], (8,)),
    ],
)
def test_text_reads_as_the_type(text, kind, value):
    got = tree.from_text(text, kind)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("abc", int, "a whole number"),
        ("1.5", int, "a whole number"),
        ("x", float, "a number"),
        ("maybe", bool, "true or false"),
        ("1,x", tuple[int, ...], "a whole number"),
        ("1e400", int, "a whole number"),
    ],
)
def test_text_of_another_type_is_refused(text, kind, message):
    with pytest.raises(ValueError, match=message):
        tree.from_text(text, kind)


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        (at_least(1), (1, 2), (0, -1)),
        (above(0), (0.1,), (0, math.nan)),
        (within(0, 1), (0, 1), (-0.1, 1.1, math.nan)),
        (above_to(0, 1), (1, 0.1), (0, 1.1)),
        (from_below(0, 1), (0, 0.9), (1, -1)),
        (one_of("", "x"), ("", "x"), ("y",)),
        (each(at_least(0)), ((0, 1),), ((), (-1,))),
        (SEED, (0, 2**32 - 1), (-1, 2**32)),
    ],
)
def test_rules_hold_where_they_say(rule, good, bad):
    assert all(rule.holds(x) for x in good)
    assert not any(rule.holds(x) for x in bad)


def test_a_section_can_check_itself():
    @dataclasses.dataclass(frozen=True)
    class Checked:
        share: float = option(0.5, "of all", within(0, 1, "1 keeps all"))

        def __post_init__(self):
            check(self)

    with pytest.raises(ValueError, match=r"share=2: must lie in \[0, 1\]; 1 keeps all"):
        Checked(share=2)


def test_leaves_say_what_they_are():
    found = {leaf.path: leaf for leaf in tree.leaves(Outer(), "o.")}
    assert list(found) == [
        "o.count", "o.on", "o.sizes", "o.shares", "o.seed", "o.inner.rate", "o.inner.kind",
    ]  # fmt: skip
    assert found["o.inner.rate"].about.meaning == "learning rate per update"
    assert [path for path, leaf in found.items() if not leaf.about.pins] == ["o.seed"]
    assert found["o.on"].about.meaning == ""


def test_flat_and_nested_are_the_same():
    nested = {"a": {"b": 1, "c": {"d": (2,)}}, "e": "x"}
    flat = {"a.b": 1, "a.c.d": (2,), "e": "x"}
    assert tree.flatten(nested) == flat
    assert tree.unflatten(flat) == nested
    assert tree.show((1.0, 0.4)) == "1.0,0.4"
    assert tree.show(True) == "true"


def test_the_same_name_in_another_place_is_suggested_first():
    known = dict.fromkeys(
        ("seed", "env.a.seed", "env.b.seed", "x.one.reward.penalty", "x.two.reward.penalty"), ""
    )
    assert tree.nearest("x.two.penalty", known) == "x.two.reward.penalty"
    assert tree.nearest("env.seed", known) == "env.a.seed or env.b.seed"
    assert tree.unknown("env.seed", known, prefix="--") == (
        "env.seed: there is no such option; did you mean --env.a.seed or --env.b.seed?"
    )


def test_nothing_alike_is_no_suggestion():
    assert tree.nearest("zzzz", {"optim.lr": "learning rate"}) == ""
    assert tree.nearest("optim.learning_rate", {"optim.lr": "learning rate", "optim.eps": ""}) == (
        "optim.lr"
    )
