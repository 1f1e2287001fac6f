"""Reads a household PDDL problem (objects, first facts, goal) into a `Game`.

Only the goal sentence is not in it: ALFWorld keeps that in its text grammar.
"""

import dataclasses
import re
from collections.abc import Iterable

from atod_jax.envs.alfworld.game import Facts, Game, Item, Receptacle

Expression = str | list["Expression"]
Atom = tuple[str, ...]

# The atoms of each goal, without order: the shape that tells task types apart.
_GOAL_SHAPES = {
    "pick_and_place_simple": "inReceptacle objectType receptacleType",
    "look_at_obj_in_light": "objectType toggleable isToggled receptacleAtLocation atLocation"
    " inReceptacle objectType holds",
    "pick_clean_then_place_in_recep": "cleanable objectType receptacleType isClean inReceptacle",
    "pick_heat_then_place_in_recep": "heatable objectType receptacleType isHot inReceptacle",
    "pick_cool_then_place_in_recep": "coolable objectType receptacleType isCool inReceptacle",
    "pick_two_obj_and_place": "objectType receptacleType inReceptacle = objectType receptacleType"
    " inReceptacle",
}

# Fact about a single thing -> its field of `Facts`.
_FACTS_OF_ONE = {
    "pickupable": "pickupable",
    "cleanable": "cleanable",
    "heatable": "heatable",
    "coolable": "coolable",
    "sliceable": "sliceable",
    "toggleable": "toggleable",
    "isReceptacleObject": "vessels",
    "opened": "opened",
    "isClean": "clean",
    "isHot": "hot",
    "isCool": "cool",
    "isSliced": "sliced",
    "isToggled": "toggled",
}
_ARITY = dict.fromkeys(_FACTS_OF_ONE, 1)
_ARITY |= {"openable": 1, "objectType": 2, "receptacleType": 2, "canContain": 2}
_ARITY |= {"inReceptacle": 2, "inReceptacleObject": 2}
_ARITY |= {"receptacleAtLocation": 2, "atLocation": 2, "objectAtLocation": 2}

_TOKEN = re.compile(r"[()]|[^\s()]+")


@dataclasses.dataclass(frozen=True)
class _Problem:
    atoms: tuple[Atom, ...]
    goal: Expression


def read_problem(
    text: str, goal: str, *, id: str, split: str, plan: tuple[str, ...] | None = None
) -> Game:
    """Returns the game of a PDDL problem of the `alfred` domain; `goal` is the goal sentence.

    Raises ValueError naming `id` and the offending part: unbalanced parentheses, a missing section,
    a fact with the wrong number of arguments, an entity without type or place, an unknown goal.
    """
    try:
        problem = _parse_problem(text)
        return _build(problem, Game(id, split, *_goal_fields(problem.goal, goal), "", (), (), plan))
    except ValueError as error:
        raise ValueError(f"PDDL problem {id!r}: {error}") from None


def read_expression(text: str) -> Expression:
    """Returns the nested lists of one parenthesised expression; `;` starts a comment."""
    stack: list[list[Expression]] = [[]]
    for token in _TOKEN.findall(re.sub(r";[^\n]*", "", text)):
        if token == "(":
            stack.append([])
        elif token == ")":
            if len(stack) == 1:
                raise ValueError("a ')' closes nothing; check the parentheses")
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(token)
    if len(stack) > 1:
        raise ValueError(f"{len(stack) - 1} '(' never closed; the text is cut off or damaged")
    if len(stack[0]) != 1:
        raise ValueError(f"expected one expression, found {len(stack[0])}")
    return stack[0][0]


def name_entities(ids: Iterable[str]) -> dict[str, str]:
    """Returns id -> the name used in texts, e.g. "Mug_bar__plus_00_dot_10" -> "mug 2".

    Within a type numbers run down in the order of the lower-cased ids. The id of a sink's basin
    starts with the sink's, hence the extra word.
    """
    by_kind: dict[str, list[str]] = {}
    for id in sorted(ids, key=str.lower):
        kind = id.lower().split("_bar_", 1)[0]
        by_kind.setdefault(kind + "basin" if "basin" in id.lower() else kind, []).append(id)
    return {
        id: f"{kind} {len(same) - rank}"
        for kind, same in by_kind.items()
        for rank, id in enumerate(same)
    }


def _parse_problem(text: str) -> _Problem:
    whole = read_expression(text)
    sections = {s[0]: s[1:] for s in whole if isinstance(s, list) and s and isinstance(s[0], str)}
    for name in (":objects", ":init", ":goal"):
        if name not in sections:
            raise ValueError(f"section {name} is missing")
    if len(sections[":goal"]) != 1:
        raise ValueError("section :goal must hold one expression")
    return _Problem(tuple(_fact(f) for f in sections[":init"]), sections[":goal"][0])


def _fact(expression: Expression) -> Atom:
    if not isinstance(expression, list) or not expression:
        raise ValueError(f"{expression!r} in :init is not a fact")
    if expression[0] == "=":  # distances and costs are of no use to the game
        return ("=",)
    if not all(isinstance(part, str) for part in expression):
        raise ValueError(f"fact {expression!r} in :init holds another expression")
    atom = tuple(part for part in expression if isinstance(part, str))
    wanted = _ARITY.get(atom[0])
    if wanted is not None and len(atom) != wanted + 1:
        raise ValueError(f"fact ({' '.join(atom)}) needs {wanted} argument(s)")
    return atom


def _goal_fields(goal: Expression, sentence: str) -> tuple[str, str, str, str, str]:
    atoms = list(_atoms_of(goal))
    shape = sorted(atom[0] for atom in atoms)
    fitting = [t for t, words in _GOAL_SHAPES.items() if sorted(words.split()) == shape]
    if not fitting:
        raise ValueError(f"the goal is of no known task type; it tests {shape}")
    toggled = {atom[1] for atom in atoms if atom[0] == "isToggled"}
    lamp = {_plain(a[2]) for a in atoms if a[0] == "objectType" and a[1] in toggled}
    item = {_plain(a[2]) for a in atoms if a[0] == "objectType" and a[1] not in toggled}
    place = {_plain(a[2]) for a in atoms if a[0] == "receptacleType"}
    if max(len(lamp), len(item), len(place)) > 1:
        raise ValueError(f"the goal names several types: {sorted(lamp | item | place)}")
    return fitting[0], sentence, "".join(item), "".join(place), "".join(lamp)


def _atoms_of(goal: Expression) -> Iterable[Atom]:
    if not isinstance(goal, list) or not goal:
        raise ValueError(f"{goal!r} in :goal is not a condition")
    head, *rest = goal
    if head in ("and", "not"):
        for part in rest:
            yield from _atoms_of(part)
    elif head == "exists" and len(rest) == 2:
        yield from _atoms_of(rest[1])
    elif isinstance(head, str) and all(isinstance(part, str) for part in rest):
        yield (head, *(part for part in rest if isinstance(part, str)))
    else:
        raise ValueError(f"condition {head!r} in :goal is not understood")


def _plain(pddl_type: str) -> str:
    return pddl_type.removesuffix("Type")


def _build(problem: _Problem, game: Game) -> Game:
    kinds = _mapping(problem.atoms, "receptacleType")
    places = _mapping(problem.atoms, "receptacleAtLocation")
    items = _mapping(problem.atoms, "objectType")
    agents = _mapping(problem.atoms, "atLocation")
    if len(agents) != 1:
        raise ValueError(f"expected one (atLocation agent place), found {len(agents)}")
    if kinds.keys() != places.keys():
        odd = min(kinds.keys() ^ places.keys())
        raise ValueError(f"receptacle {odd} needs both a receptacleType and a receptacleAtLocation")
    if any(a[0] == "holds" for a in problem.atoms):
        raise ValueError("the agent holds something at the start; begin with empty hands")
    names = name_entities([*kinds, *items])
    facts = _facts(problem.atoms, names)
    holder = dict(sorted(facts.inside, reverse=True))
    openable = {a[1] for a in problem.atoms if a[0] == "openable"}
    return dataclasses.replace(
        game,
        agent_start=next(iter(agents.values())),
        receptacles=tuple(
            Receptacle(names[id], _plain(kinds[id]), id in openable, places[id]) for id in kinds
        ),
        items=tuple(Item(names[id], _plain(items[id]), holder.get(names[id])) for id in items),
        facts=facts,
    )


def _mapping(atoms: tuple[Atom, ...], fact: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, key, value in (a for a in atoms if a[0] == fact):
        if found.setdefault(key, value) != value:
            raise ValueError(f"({name} {key} ..) is both {found[key]} and {value}")
    return found


def _facts(atoms: tuple[Atom, ...], names: dict[str, str]) -> Facts:
    def name_of(id: str) -> str:
        if id not in names:
            raise ValueError(f"{id} has neither an objectType nor a receptacleType")
        return names[id]

    ones = {
        field: frozenset(name_of(a[1]) for a in atoms if a[0] == fact)
        for fact, field in _FACTS_OF_ONE.items()
    }
    inside, nested = (
        frozenset((name_of(a[1]), name_of(a[2])) for a in atoms if a[0] == fact)
        for fact in ("inReceptacle", "inReceptacleObject")
    )
    return Facts(
        **ones,
        inside=inside,
        nested=nested,
        at=frozenset((name_of(a[1]), a[2]) for a in atoms if a[0] == "objectAtLocation"),
        can_contain=frozenset((_plain(a[1]), _plain(a[2])) for a in atoms if a[0] == "canContain"),
    )
