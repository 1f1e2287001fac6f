"""Household games out of thin air: small, plausible, always winnable, with disjoint splits.

A game is a pure function of (seed, split, index), so nothing has to be stored or shipped. The type
names, goal sentences and rules are those of ALFWorld; rooms are small enough for tiny models.

Splits. A stable hash of the room layout (style and receptacle counts) and one of the target pair
(object type, receptacle or lamp type) put about a fifth of either aside. `valid_unseen` draws only
set-aside layouts with set-aside pairs, the others only the rest. A hash of the whole scene gives a
quarter of the remaining games to `valid_seen` and the others to `train`. None of it depends on the
seed, so a training game never turns up in a validation split of any other seed either.
"""

import collections
import dataclasses
import functools
import hashlib
import random
from collections.abc import Sequence

from atod_jax.envs.alfworld.affordances import CLEANABLE, COOLABLE, HEATABLE, OPENABLE
from atod_jax.envs.alfworld.expert import solve
from atod_jax.envs.alfworld.furniture import COPIES, LAMP, PLACES, STYLES
from atod_jax.envs.alfworld.game import TASK_TYPES, Game, Item, Receptacle

SPLITS = ("train", "valid_seen", "valid_unseen")
_MAX_ATTEMPTS = 500


@dataclasses.dataclass(frozen=True)
class Size:
    """How large rooms and tasks are."""

    receptacles: int = 8
    items: int = 7  # a desk lamp included
    per_receptacle: int = 2  # most items one receptacle holds at the start
    max_turns: int = 20  # the scripted expert wins within this many turns


DEFAULT_SIZE = Size()
SIZES = {"small": DEFAULT_SIZE, "large": Size(receptacles=12, items=8, max_turns=40)}

# ---------------------------------------------------------------------------------------- the tasks

# What a task asks for: styles, object types (None: any), receptacle types it must not name.
_TASKS: dict[str, tuple[tuple[str, ...], frozenset[str] | None, str]] = {
    "pick_and_place_simple": (tuple(STYLES), None, ""),
    "look_at_obj_in_light": (("bedroom", "livingroom"), None, ""),
    "pick_clean_then_place_in_recep": (("kitchen", "bathroom"), CLEANABLE, "SinkBasin"),
    "pick_heat_then_place_in_recep": (("kitchen",), HEATABLE, "Microwave"),
    "pick_cool_then_place_in_recep": (("kitchen",), COOLABLE, "Fridge"),
    "pick_two_obj_and_place": (tuple(STYLES), None, ""),
}

GOALS = {
    "pick_and_place_simple": ("put a {obj} in {place}", "put some {obj} on {place}"),
    "look_at_obj_in_light": (
        "look at {obj} under the desklamp",
        "examine the {obj} with the desklamp",
    ),
    "pick_clean_then_place_in_recep": (
        "put a clean {obj} in {place}",
        "clean some {obj} and put it in {place}",
    ),
    "pick_heat_then_place_in_recep": (
        "put a hot {obj} in {place}",
        "heat some {obj} and put it in {place}",
    ),
    "pick_cool_then_place_in_recep": (
        "put a cool {obj} in {place}",
        "cool some {obj} and put it in {place}",
    ),
    "pick_two_obj_and_place": (
        "put two {obj} in {place}",
        "find two {obj} and put them in {place}",
    ),
}

# --------------------------------------------------------------------------------------- the splits


def _bucket(key: str, count: int) -> int:
    """A stable bucket in 0..count-1; the same on every machine and Python."""
    return int.from_bytes(hashlib.blake2s(key.encode()).digest()[:4], "big") % count


@functools.cache
def is_unseen_pair(obj: str, place: str) -> bool:
    """Whether the target pair is kept for `valid_unseen`; `place` is "DeskLamp" for look tasks."""
    return _bucket(f"split {obj} {place}", 5) == 0


@functools.cache
def is_unseen_layout(style: str, types: tuple[str, ...]) -> bool:
    """Whether the room (sorted receptacle types) is kept for `valid_unseen`."""
    return _bucket(f"layout {style} {' '.join(types)}", 5) == 0


@functools.cache
def target_pairs(task_type: str, style: str, *, unseen: bool) -> tuple[tuple[str, str], ...]:
    """(object, receptacle or lamp) targets of a task type in a style, on one side of the split."""
    styles, allowed, device = _TASKS[task_type]
    if style not in styles:
        return ()
    room = {*STYLES[style].required, *STYLES[style].optional} - {device}
    objects = [o for o in STYLES[style].objects if allowed is None or o in allowed]
    looks = task_type == "look_at_obj_in_light"
    pairs = [(o, p) for o in objects for p in ((LAMP,) if looks else PLACES[o])]
    return tuple(
        (o, p) for o, p in pairs if (looks or p in room) and is_unseen_pair(o, p) == unseen
    )


# -------------------------------------------------------------------------------------- generation


@dataclasses.dataclass(frozen=True)
class _Scene:
    layout: tuple[str, ...]  # sorted receptacle types
    obj: str
    place: str  # "" for look tasks
    receptacles: tuple[Receptacle, ...]
    items: tuple[Item, ...]


def generate(split: str, index: int, *, seed: int = 0, size: Size = DEFAULT_SIZE) -> Game:
    """The game number `index` of a split; task types take turns by index.

    `plan` holds the scripted expert's winning commands, at most `size.max_turns` of them.

    Raises:
      ValueError: unknown split, negative index, or a size that no game satisfies.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; use one of {', '.join(SPLITS)}")
    if index < 0:
        raise ValueError(f"index {index} is negative; games are numbered from 0")
    _check(size)
    rng = random.Random(f"{seed}/{split}/{index}")
    task_type = TASK_TYPES[index % len(TASK_TYPES)]
    name = f"{task_type}/{split}-{seed}-{index}"
    for _ in range(_MAX_ATTEMPTS):
        game = _attempt(rng, split, task_type=task_type, name=name, size=size)
        plan = solve(game, max_turns=size.max_turns) if game else None
        if game and plan:
            return dataclasses.replace(game, plan=plan)
    raise ValueError(f"no winnable game for {size} in {_MAX_ATTEMPTS} tries; raise max_turns")


@functools.cache
def _check(size: Size) -> None:
    least = max(len(s.required) for s in STYLES.values())
    most = min(len(s.required + s.optional) for s in STYLES.values())
    if not least <= size.receptacles <= most:
        raise ValueError(f"size.receptacles={size.receptacles}; must be in {least}..{most}")
    if size.items < 3 or size.per_receptacle < 1 or size.max_turns < 4:
        raise ValueError(f"{size}: needs items >= 3, per_receptacle >= 1 and max_turns >= 4")
    most_items = min(COPIES * len(s.objects) for s in STYLES.values())
    if size.items > min(most_items, size.receptacles * size.per_receptacle):
        raise ValueError(f"size.items={size.items} do not fit the room; lower it")


def _attempt(
    rng: random.Random, split: str, *, task_type: str, name: str, size: Size
) -> Game | None:
    """One random game of the split, or None when a draw falls on the wrong side of it."""
    scene = _draw_scene(rng, split == "valid_unseen", task_type=task_type, size=size)
    if scene is None:
        return None
    contents = f"{task_type} {scene.obj} {scene.place} {scene.receptacles} {scene.items}"
    in_valid_seen = _bucket(contents, 4) == 0
    if split != "valid_unseen" and in_valid_seen != (split == "valid_seen"):
        return None
    template = rng.choice(GOALS[task_type])
    return Game(
        id=name,
        split=split,
        task_type=task_type,
        goal=template.format(obj=scene.obj.lower(), place=scene.place.lower()),
        object_target=scene.obj,
        parent_target=scene.place,
        toggle_target="" if scene.place else LAMP,
        agent_start="loc 0",
        receptacles=scene.receptacles,
        items=scene.items,
    )


def _draw_scene(rng: random.Random, unseen: bool, *, task_type: str, size: Size) -> _Scene | None:
    style = rng.choice(
        [s for s in _TASKS[task_type][0] if target_pairs(task_type, s, unseen=unseen)]
    )
    furniture = STYLES[style]
    extra = rng.sample(furniture.optional, size.receptacles - len(furniture.required))
    layout = tuple(sorted((*furniture.required, *extra)))
    pairs = [p for p in target_pairs(task_type, style, unseen=unseen) if p[1] in (*layout, LAMP)]
    if not pairs or is_unseen_layout(style, layout) != unseen:
        return None
    obj, place = rng.choice(pairs)
    place = "" if place == LAMP else place
    receptacles = _furnish(layout)
    kinds = _draw_items(rng, task_type, obj=obj, objects=furniture.objects, count=size.items)
    items = _lay_out(rng, kinds, receptacles=receptacles, banned=(obj, place), size=size)
    return _Scene(layout, obj, place, receptacles, items) if items else None


def _furnish(layout: Sequence[str]) -> tuple[Receptacle, ...]:
    numbers: dict[str, int] = collections.Counter()
    made = []
    for place, kind in enumerate(layout, start=1):
        numbers[kind] += 1
        name = f"{kind.lower()} {numbers[kind]}"
        made.append(Receptacle(name, kind, kind in OPENABLE, f"loc {place}"))
    return tuple(made)


def _draw_items(
    rng: random.Random, task_type: str, *, obj: str, objects: Sequence[str], count: int
) -> list[str]:
    """Item types: what the task needs first, then anything of the style, at most two of a type."""
    kinds = [obj] * (2 if task_type == "pick_two_obj_and_place" else 1)
    if task_type == "look_at_obj_in_light":
        kinds.append(LAMP)
    bag = [kind for kind in objects for _ in range(COPIES - kinds.count(kind))]
    return kinds + rng.sample(bag, count - len(kinds))


def _lay_out(
    rng: random.Random,
    kinds: Sequence[str],
    *,
    receptacles: Sequence[Receptacle],
    banned: tuple[str, str],
    size: Size,
) -> tuple[Item, ...]:
    """Items in plausible places, targets never where they belong; () if one fits nowhere."""
    load = dict.fromkeys((r.name for r in receptacles), 0)
    total = collections.Counter(kinds)
    numbers = {kind: rng.sample(range(1, n + 1), n) for kind, n in total.items()}
    items = []
    for kind in kinds:
        fits = [
            r.name
            for r in receptacles
            if r.type in PLACES[kind]
            and (kind, r.type) != banned
            and load[r.name] < size.per_receptacle
        ]
        if not fits:
            return ()
        inside = rng.choice(fits)
        load[inside] += 1
        items.append(Item(f"{kind.lower()} {numbers[kind].pop()}", kind, inside))
    return tuple(sorted(items, key=lambda item: item.name))
