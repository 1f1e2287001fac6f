"""The household text game as a small state machine, equal to the TextWorld engine word for word.

TextWorld needs about 0.2 s per step and one process per game; this engine needs microseconds and
keeps all of its state in the instance. Rules follow the PDDL domain and the text grammar of
alfworld 0.4.2, including their oddities, each of which is marked where it is written down.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable

from atod_jax.envs.alfworld.affordances import KNIVES, infer_facts
from atod_jax.envs.alfworld.game import TASK_TYPES, Facts, Game, Receptacle

Commands = tuple[str, ...]
Action = tuple[Callable[..., str], *tuple[str, ...]]  # (method, names it is applied to)

NOTHING_HAPPENS = "Nothing happens."

_TREATMENT_AT = {"Microwave": "heat", "SinkBasin": "clean", "Fridge": "cool"}
_UNDOES = {"heat": "cool", "cool": "heat"}
_TREATMENT_FOR = {
    "pick_clean_then_place_in_recep": "clean",
    "pick_heat_then_place_in_recep": "heat",
    "pick_cool_then_place_in_recep": "cool",
}

HELP = """Available commands:
  look:                             look around your current location
  inventory:                        check your current inventory
  go to (receptacle):               move to a receptacle
  open (receptacle):                open a receptacle
  close (receptacle):               close a receptacle
  take (object) from (receptacle):  take an object from a receptacle
  move (object) to (receptacle):  place an object in or on a receptacle
  examine (something):              examine a receptacle or an object
  use (object):                     use an object
  heat (object) with (receptacle):  heat an object using a receptacle
  clean (object) with (receptacle): clean an object using a receptacle
  cool (object) with (receptacle):  cool an object using a receptacle
  slice (object) with (object):     slice an object using a sharp object
"""


def in_words(names: Iterable[str]) -> str:
    """Returns "x", "x, and y", "x, y, and z", or "nothing"; the comma stays even with two names."""
    *head, last = list(names) or ["nothing"]
    return f"{', '.join(head)}, and {last}" if head else last


def _order(name: str) -> tuple[str, int]:
    """Sort key of every list in the texts: types in alphabetical order, numbers descending."""
    kind, _, number = name.rpartition(" ")
    return kind, -int(number)


class Engine:
    """One game being played; `reset` starts it again. Instances share nothing, so threads are fine.

    Read-only state: `loc`, `here` (receptacles within reach, in text order), `holding` (an item's
    name or None), `won`, `heated`, `cooled`, `cleaned`, `contents(receptacle)`,
    `is_open(receptacle)`.

    Raises ValueError for a game that contradicts itself, naming the game and the entry.
    """

    def __init__(self, game: Game):
        _check(game)
        self.game = game
        self._facts: Facts = infer_facts(game) if game.facts is None else game.facts
        self._receptacles: dict[str, Receptacle] = {
            r.name: r for r in sorted(game.receptacles, key=lambda r: _order(r.name))
        }
        self._types = {i.name: i.type for i in game.items}
        names = sorted((i.name for i in game.items), key=_order)
        self._rank = {name: rank for rank, name in enumerate(names)}
        self._fixed: dict[str, dict[str, Action]] = {}  # commands that depend on the place alone
        self._treatable = {
            "clean": self._facts.cleanable,
            "heat": self._facts.heatable,
            "cool": self._facts.coolable,
        }
        self._goal_treatment = _TREATMENT_FOR.get(game.task_type)
        self._targets = {i.name for i in game.items if i.type == game.object_target}
        if self._goal_treatment:
            self._targets &= self._treatable[self._goal_treatment]
        self._goals = [r.name for r in game.receptacles if r.type == game.parent_target]
        self._lamps = {i.name for i in game.items if i.type == game.toggle_target}
        self._lamps &= self._facts.toggleable
        self.reset()

    def reset(self) -> tuple[str, Commands]:
        """Starts the game; returns the opening text and the admissible commands (sorted)."""
        facts = self._facts
        self.loc = self.game.agent_start
        self.holding: str | None = None
        self._contents: dict[str, set[str]] = {name: set() for name in self._receptacles}
        for item, receptacle in facts.inside:
            self._contents[receptacle].add(item)
        self._at = set(facts.at)
        self._taken: set[tuple[str, str]] = set()  # (item, receptacle) it was last taken out of
        self._opened, self._toggled = set(facts.opened), set(facts.toggled)
        self._sliced = set(facts.sliced)
        self._treated = {"clean": set(facts.clean), "heat": set(facts.hot), "cool": set(facts.cool)}
        commands = self._refresh()
        return f"-= Welcome to TextWorld, ALFRED! =-\n\n{self._intro()}", commands

    def step(self, command: str) -> tuple[str, Commands, bool]:
        """Returns (feedback, admissible commands, won); an inadmissible command changes nothing."""
        action = self._actions.get(command.strip())
        if action is None:
            return NOTHING_HAPPENS, self._commands, self.won
        method, *names = action
        text = method(self, *names)
        return text, self._refresh(), self.won

    # ------------------------------------------------------------------------------ what it shows

    @property
    def here(self) -> tuple[str, ...]:
        return self._here

    @property
    def heated(self) -> frozenset[str]:
        return frozenset(self._treated["heat"])

    @property
    def cooled(self) -> frozenset[str]:
        return frozenset(self._treated["cool"])

    @property
    def cleaned(self) -> frozenset[str]:
        return frozenset(self._treated["clean"])

    def contents(self, receptacle: str) -> tuple[str, ...]:
        """Returns the items in or on a receptacle in text order, seen or not."""
        return tuple(sorted(self._contents[receptacle], key=self._rank.__getitem__))

    def is_open(self, receptacle: str) -> bool:
        """Whether items can be seen, taken and put there: it is open, or has no door at all."""
        return receptacle in self._opened or not self._receptacles[receptacle].openable

    # ---------------------------------------------------------------------------- goal and commands

    def _goal_met(self) -> bool:
        if self.game.task_type == "look_at_obj_in_light":
            lit = self._lamps & self._toggled
            shining = any(self._contents[r] & lit for r in self._here)
            return shining and self.holding in self._targets
        ready = self._targets
        if self._goal_treatment:
            ready = ready & self._treated[self._goal_treatment]
        needed = 2 if self.game.task_type == "pick_two_obj_and_place" else 1
        return any(len(self._contents[r] & ready) >= needed for r in self._goals)

    def _refresh(self) -> Commands:
        self._here = self._receptacles_at(self.loc)
        self._actions = self._admissible()
        self._commands: Commands = tuple(sorted(self._actions))
        self.won = self._goal_met()
        return self._commands

    def _receptacles_at(self, loc: str) -> tuple[str, ...]:
        return tuple(r.name for r in self._receptacles.values() if r.loc == loc)

    def _admissible(self) -> dict[str, Action]:
        if self.loc not in self._fixed:
            self._fixed[self.loc] = self._actions_of_place()
        found = dict(self._fixed[self.loc])
        for receptacle in self._here:
            found.update(self._actions_of_receptacle(receptacle))
            if self.holding is not None:
                found.update(self._actions_of_hand(receptacle, self.holding))
        if self.holding is not None:  # items that merely lie in sight cannot be examined
            found[f"examine {self.holding}"] = (Engine._examine_item, self.holding)
            found.update(self._cuts(self.holding))
        return found

    def _actions_of_place(self) -> dict[str, Action]:
        found: dict[str, Action] = {
            "help": (Engine._help,),
            "inventory": (Engine._inventory,),
            "look": (Engine._look,),
        }
        for r in self._receptacles.values():
            if r.loc != self.loc:
                found[f"go to {r.name}"] = (Engine._go, r.name)
            else:
                found[f"examine {r.name}"] = (Engine._describe, r.name)
        return found

    def _actions_of_receptacle(self, receptacle: str) -> dict[str, Action]:
        found: dict[str, Action] = {}
        if self._receptacles[receptacle].openable:
            is_open = receptacle in self._opened
            verb, method = ("close", Engine._close) if is_open else ("open", Engine._open)
            found[f"{verb} {receptacle}"] = (method, receptacle)
        items = self._contents[receptacle]
        for lamp in items & self._facts.toggleable:  # a lamp works even behind a closed door
            found[f"use {lamp}"] = (Engine._use, lamp)
        if not self.is_open(receptacle):
            return found
        if self.holding is None:
            for item in items & self._facts.pickupable:
                found[f"take {item} from {receptacle}"] = (Engine._take, item, receptacle)
        return found

    def _actions_of_hand(self, receptacle: str, item: str) -> dict[str, Action]:
        found: dict[str, Action] = {}
        kind = self._receptacles[receptacle].type
        if (kind, self._types[item]) in self._facts.can_contain and self.is_open(receptacle):
            found[f"move {item} to {receptacle}"] = (Engine._move, item, receptacle)
        verb = _TREATMENT_AT.get(kind)  # it works behind a closed door, too
        if verb and item in self._treatable[verb]:
            found[f"{verb} {item} with {receptacle}"] = (Engine._treat, verb, item, receptacle)
        return found

    def _cuts(self, knife: str) -> dict[str, Action]:
        if self._types[knife] not in KNIVES:
            return {}
        near = (item for item in self._facts.sliceable if (item, self.loc) in self._at)
        return {f"slice {item} with {knife}": (Engine._slice, item, knife) for item in near}

    # --------------------------------------------------------------------------------- what happens

    def _go(self, receptacle: str) -> str:
        self.loc = self._receptacles[receptacle].loc
        return f"You arrive at {receptacle}. {self._describe(receptacle)}"

    def _open(self, receptacle: str) -> str:
        self._opened.add(receptacle)
        return f"You open the {receptacle}. {self._describe(receptacle)}"

    def _close(self, receptacle: str) -> str:
        self._opened.remove(receptacle)
        return f"You close the {receptacle}."

    def _take(self, item: str, receptacle: str) -> str:
        self._contents[receptacle].remove(item)
        self._at.discard((item, self.loc))
        self._taken.add((item, receptacle))
        self.holding = item
        return f"You pick up the {item} from the {receptacle}."

    def _move(self, item: str, receptacle: str) -> str:
        self._contents[receptacle].add(item)
        self._at.add((item, self.loc))
        self._taken.discard((item, receptacle))
        self.holding = None
        return f"You move the {item} to the {receptacle}."

    def _treat(self, verb: str, item: str, receptacle: str) -> str:
        self._treated[verb].add(item)
        if verb in _UNDOES:
            self._treated[_UNDOES[verb]].discard(item)
        return f"You {verb} the {item} using the {receptacle}."

    def _use(self, lamp: str) -> str:
        """A lamp stays on at its second use: text and goal ask only whether it was ever used."""
        self._toggled.add(lamp)
        return f"You turn on the {lamp}."

    def _slice(self, item: str, knife: str) -> str:
        self._sliced.add(item)
        return f"You sliced the {item} with the {knife}."

    # ---------------------------------------------------------------------------------------- texts

    def _intro(self) -> str:
        rooms = in_words(f"a {name}" for name in self._receptacles)
        scene = self._look() if self._here else self._middle_of_room(rooms)
        return f"{scene}\n\nYour task is to: {self.game.goal}."

    def _middle_of_room(self, seen: str) -> str:
        return f"You are in the middle of a room. Looking quickly around you, you see {seen}."

    def _look(self) -> str:
        if not self._here:  # the appliance list of the opening is never repeated
            return self._middle_of_room("nothing")
        floor = in_words(f"a {item}" for item in self._on_the_floor())
        return f"You are facing the {in_words(self._here)}. Next to it, you see {floor}."

    def _on_the_floor(self) -> list[str]:
        """Items at this place that were taken out of a receptacle here, once for each of those.

        The grammar means things lying outside receptacles, but its test also matches an item that
        was moved from one receptacle to another of the same place.
        """
        names = [i for i, r in self._taken if r in self._here and (i, self.loc) in self._at]
        return sorted(names, key=self._rank.__getitem__)

    def _help(self) -> str:
        return HELP

    def _inventory(self) -> str:
        if self.holding is None:
            return "You are not carrying anything."
        return f"You are carrying: a {self.holding}."

    def _describe(self, receptacle: str) -> str:
        if not self.is_open(receptacle):
            return f"The {receptacle} is closed."
        seen = in_words(f"a {item}" for item in self.contents(receptacle))
        if self._receptacles[receptacle].openable:
            return f"The {receptacle} is open. In it, you see {seen}."
        return f"On the {receptacle}, you see {seen}."

    def _examine_item(self, item: str) -> str:
        if item in self._facts.vessels:
            inner = sorted(
                (i for i, outer in self._facts.nested if outer == item), key=self._rank.__getitem__
            )
            return f"This is a normal {item}. In it, you see {in_words(f'a {i}' for i in inner)}."
        warmth = "hot" if item in self._treated["heat"] else ""
        warmth = warmth or ("cool" if item in self._treated["cool"] else "")
        cleaned = "clean" if item in self._treated["clean"] else ""
        treated = " and ".join(word for word in (warmth, cleaned) if word)
        sliced = item in self._sliced
        if treated == "cool" and not sliced:
            return f"This is a cold {item}."
        if treated:
            return f"This is a {treated} {'sliced ' if sliced else ''}{item}."
        if item in self._toggled and item in self._facts.toggleable:
            return f"This {item} is on."
        if sliced and item in self._facts.sliceable:
            return f"This is a sliced {item}."
        return f"There's nothing special about {item}."


def _check(game: Game) -> None:
    if game.task_type not in TASK_TYPES:
        raise ValueError(f"game {game.id}: task_type {game.task_type!r}; use one of {TASK_TYPES}")
    names = Counter(entity.name for entity in (*game.receptacles, *game.items))
    for name, times in names.items():
        if times > 1 or not re.fullmatch(r"\D+ \d+", name):
            raise ValueError(f"game {game.id}: {name!r} is no unique name such as 'mug 1'")
    inside = {(i.name, i.inside) for i in game.items if i.inside is not None}
    inside |= game.facts.inside if game.facts else set()
    known = {r.name for r in game.receptacles}
    for item, receptacle in sorted(inside):
        if receptacle not in known:
            raise ValueError(
                f"game {game.id}: {item!r} is inside {receptacle!r}, which is no receptacle of this"
                " game; name one of its receptacles or None"
            )
