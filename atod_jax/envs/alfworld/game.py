"""The plain-data description of one household game, whatever it was made from.

Sources (generated scenes, games.jsonl files, PDDL problems, official folders) all build a `Game`;
the engine plays nothing else.
"""

import dataclasses

TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)


@dataclasses.dataclass(frozen=True)
class Receptacle:
    """A place that holds things."""

    name: str  # "cabinet 3", as in the text
    type: str  # "Cabinet"
    openable: bool
    loc: str  # receptacles with the same loc are reachable from it together


@dataclasses.dataclass(frozen=True)
class Item:
    """A thing, and where it is at the start."""

    name: str  # "mug 1"
    type: str  # "Mug"
    inside: str | None  # name of its receptacle, or None


@dataclasses.dataclass(frozen=True)
class Facts:
    """What can be done with what in one game, and how it starts; every string is a name.

    Sources that spell this out (PDDL) fill it in. Where a `Game` has none, the by-type tables of
    `affordances` decide.
    """

    pickupable: frozenset[str]
    cleanable: frozenset[str]
    heatable: frozenset[str]
    coolable: frozenset[str]
    sliceable: frozenset[str]
    toggleable: frozenset[str]
    vessels: frozenset[str]  # items that look like containers when examined, such as bowls
    can_contain: frozenset[tuple[str, str]]  # (receptacle type, item type)
    inside: frozenset[tuple[str, str]]  # (item, receptacle)
    at: frozenset[tuple[str, str]]  # (item, loc)
    nested: frozenset[tuple[str, str]] = frozenset()  # (inner item, outer item)
    opened: frozenset[str] = frozenset()
    clean: frozenset[str] = frozenset()
    hot: frozenset[str] = frozenset()
    cool: frozenset[str] = frozenset()
    sliced: frozenset[str] = frozenset()
    toggled: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Game:
    """One game: its room, what is where, and what is asked for."""

    id: str
    split: str  # train | valid_seen | valid_unseen
    task_type: str  # one of TASK_TYPES
    goal: str  # the sentence after "Your task is to: ", without the final dot
    object_target: str  # "Mug"
    parent_target: str  # "Shelf"; "" for look_at_obj_in_light
    toggle_target: str  # "DeskLamp"; "" for the others
    agent_start: str  # a loc
    receptacles: tuple[Receptacle, ...]
    items: tuple[Item, ...]
    plan: tuple[str, ...] | None = None  # commands known or believed to win
    facts: Facts | None = None  # None: inferred from types
