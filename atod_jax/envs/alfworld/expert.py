"""A scripted player for demonstrations, for checking that games are solvable, and as a baseline.

It decides from a `View` with two answered commands, the very things the compact prompt prints, so
a model can imitate it. Strategy: sweep the room in listed order from the present place, open what
is closed, take the target, treat it at the device, place it at the first listed receptacle of the
wanted type. It recovers from any state, also after foreign actions.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence

from atod_jax.envs.alfworld.affordances import CAN_CONTAIN
from atod_jax.envs.alfworld.engine import Engine
from atod_jax.envs.alfworld.furniture import RECEPTACLE_NAMES
from atod_jax.envs.alfworld.game import Game
from atod_jax.envs.alfworld.prompts import View, make_view
from atod_jax.envs.base import Episode, Observation
from atod_jax.envs.scripted import Decision, Uniform, pick

HISTORY = 2
_TAKES_IN = frozenset((holder.lower(), held.lower()) for holder, held in CAN_CONTAIN)

# --------------------------------------------------------------------------------------------- goal


@dataclasses.dataclass(frozen=True)
class Goal:
    """The task sentence taken apart; names are lower-case types, "" where not asked for."""

    target: str
    place: str = ""
    state: str = ""  # hot | cool | clean
    lamp: str = ""
    two: bool = False

    @property
    def wanted(self) -> str:
        return f"{self.state} {self.target}" if self.state else self.target


_TWO = re.compile(r"(?:put|find) two (\w+) (?:in|on|and put them (?:in|on)) (\w+)$")
_PUT = re.compile(r"put (?:an?|some)(?: (clean|hot|cool))? (\w+) (?:in|on) (\w+)$")
_TREAT = re.compile(r"(clean|heat|cool) some (\w+) and put it (?:in|on) (\w+)$")
_LOOK = re.compile(r"(?:look at|examine)(?: the| an?)? (\w+) (?:under|with) the (\w+)$")


@functools.lru_cache(maxsize=4096)
def parse_goal(task: str) -> Goal:
    """The `Goal` of a templated task sentence.

    Raises:
      ValueError: the sentence follows none of the templates.
    """
    if match := _TWO.match(task):
        return Goal(match[1], match[2], two=True)
    if match := _PUT.match(task):
        return Goal(match[2], match[3], match[1] or "")
    if match := _TREAT.match(task):
        return Goal(match[2], match[3], "hot" if match[1] == "heat" else match[1])
    if match := _LOOK.match(task):
        return Goal(match[1], lamp=match[2])
    raise ValueError(f"task sentence {task!r} follows no known template; only those are playable")


# -------------------------------------------------------------------------------------- known scene


@dataclasses.dataclass(frozen=True)
class Scene:
    """The receptacle in focus and what the recent answers tell about it."""

    place: str  # "" in the middle of the room
    items: tuple[str, ...] = ()
    known: bool = False
    closed: bool = False
    failed: str = ""  # the last command, when nothing happened


def read_scene(view: View) -> Scene:
    """The focus: where the view is at, or a listed receptacle that `go to` could not reach.

    Receptacles that share a spot refuse `go to` but can be examined and used from there.
    """
    failed = ""
    if view.recent and view.recent[-1][1].kind == "fail":
        failed = view.recent[-1][0]
    verb, _, name = failed.partition(" ")
    name = name.removeprefix("to ")
    if verb in ("go", "examine") and name in view.room and name != view.at:
        return Scene(name, failed=failed)
    return dataclasses.replace(_recall(view), failed=failed)


def _recall(view: View) -> Scene:
    scene = Scene(view.at)
    for _, event in view.recent:
        if event.place != view.at:
            continue
        if event.kind == "see":
            scene = Scene(view.at, event.items, known=True)
        elif event.kind in ("closed", "close"):
            scene = Scene(view.at, known=True, closed=True)
        elif event.kind == "take":
            left = tuple(i for i in scene.items if i != event.item)
            scene = dataclasses.replace(scene, items=left)
        elif event.kind == "move":
            scene = dataclasses.replace(scene, items=(*scene.items, event.item))
    return scene


def _kind(name: str) -> str:
    return name.partition(" ")[0]


def _first(view: View, kind: str) -> str:
    return next((name for name in view.room if _kind(name) == kind), "")


def _next(view: View, place: str) -> str:
    if place not in view.room:
        return view.room[0]
    return view.room[(view.room.index(place) + 1) % len(view.room)]


# ------------------------------------------------------------------------------------------- policy


DEVICES = {
    "hot": ("heat", "microwave"),
    "cool": ("cool", "fridge"),
    "clean": ("clean", "sinkbasin"),
}


def decide(view: View) -> Decision:
    """The expert's command for a view, with the thought that leads to it.

    Raises:
      ValueError: the task sentence follows no template, or the room is empty.
    """
    if not view.room:
        raise ValueError(f"no receptacles in the first observation of task {view.task!r}")
    goal, scene = parse_goal(view.task), read_scene(view)
    if not view.holding:
        decision = _search(view, goal, scene)
    elif _kind(view.holding) == goal.target:
        decision = _carry(view, goal, scene)
    else:
        decision = _drop(view, goal, scene)
    return _go_on(view, goal, scene) if decision.command == scene.failed else decision


def _go_on(view: View, goal: Goal, scene: Scene) -> Decision:
    target = _next(view, scene.place)
    sought = goal.lamp if goal.lamp and view.holding else goal.target
    if not scene.place:
        seen = "nothing seen yet"
    elif goal.two and not view.holding and scene.place == _first(view, goal.place):
        seen = f"{scene.place} is the place to put it"
    elif scene.known and not scene.closed:
        seen = f"{scene.place} has {', '.join(scene.items) or 'nothing'}, no {sought}"
    else:
        seen = f"{scene.place} is of no use"
    lead = f"need {sought}" if view.holding else f"need {goal.wanted}"
    return Decision(f"go to {target}", f"{lead}. {seen}, so go on to {target}")


def _inspect(lead: str, scene: Scene) -> Decision | None:
    """What to do before the place in focus can be used or judged; None when it is open to view."""
    if not scene.known:
        why = f"{lead}. what is at {scene.place} is not known now, so examine it"
        return Decision(f"examine {scene.place}", why)
    if scene.closed:
        why = f"{lead}. {scene.place} is closed, what is in it not seen, so open it"
        return Decision(f"open {scene.place}", why)
    return None


def _search(view: View, goal: Goal, scene: Scene) -> Decision:
    if not scene.place:
        return _go_on(view, goal, scene)
    if blocked := _inspect(f"need {goal.wanted}", scene):
        return blocked
    placed = goal.two and scene.place == _first(view, goal.place)
    found = "" if placed else next((i for i in scene.items if _kind(i) == goal.target), "")
    if not found:
        return _go_on(view, goal, scene)
    why = f"need {goal.wanted}. {scene.place} has {found}, it is the one to find, so take it"
    return Decision(f"take {found} from {scene.place}", why)


def _carry(view: View, goal: Goal, scene: Scene) -> Decision:
    if goal.lamp:
        return _light(view, goal, scene)
    if goal.state and goal.state not in view.states:
        return _treat(view, goal, scene)
    return _place(view, goal, scene)


def _light(view: View, goal: Goal, scene: Scene) -> Decision:
    if blocked := _inspect(f"need {goal.lamp}", scene):
        return blocked
    lamp = next((i for i in scene.items if _kind(i) == goal.lamp), "")
    if not lamp:
        return _go_on(view, goal, scene)
    why = f"hold {view.holding}. {scene.place} has {lamp}, it is the one to find, so use it"
    return Decision(f"use {lamp}", why)


def _treat(view: View, goal: Goal, scene: Scene) -> Decision:
    verb, kind = DEVICES[goal.state]
    lead = f"hold {view.holding}. it is not {goal.state} yet"
    if _kind(scene.place) == kind:
        why = f"{lead} and {kind} is here, so {verb} it"
        return Decision(f"{verb} {view.holding} with {scene.place}", why)
    device = _first(view, kind)
    if not device:
        return _go_on(view, goal, scene)
    return Decision(f"go to {device}", f"{lead}, so bring it to {device} to {verb} it")


def _place(view: View, goal: Goal, scene: Scene) -> Decision:
    target = _first(view, goal.place)
    fits = scene.place == target if goal.two else _kind(scene.place) == goal.place
    lead = f"hold {view.holding}. it is the {goal.wanted} to put in {goal.place}"
    if not fits and target:
        return Decision(f"go to {target}", f"{lead}, so bring it to {target}")
    if blocked := _inspect(f"hold {view.holding}", scene):
        return blocked
    why = f"{lead} and {scene.place} is here, so move it"
    return Decision(f"move {view.holding} to {scene.place}", why)


def _drop(view: View, goal: Goal, scene: Scene) -> Decision:
    lead = f"hold {view.holding}. it is not the {goal.wanted} to find"
    target = _next_holder(view, scene.place)
    if target != scene.place:
        return Decision(f"go to {target}", f"{lead}, so bring it to {target} to put it in")
    if blocked := _inspect(f"hold {view.holding}", scene):
        return blocked
    return Decision(f"move {view.holding} to {target}", f"{lead}, so put it in {target}")


def _next_holder(view: View, place: str) -> str:
    """The first receptacle from `place` on that takes the held item; the next one if none does."""
    start = view.room.index(place) if place in view.room else 0
    ahead = (*view.room[start:], *view.room[:start])
    kind = _kind(view.holding)
    return next((name for name in ahead if (_kind(name), kind) in _TAKES_IN), _next(view, place))


def act(episode: Episode) -> str:
    """The command for the present turn (see `decide`)."""
    return decide(make_view(episode, HISTORY)).command


def thought(episode: Episode, command: str) -> str:
    """A short thought: what is looked for, what was seen, why `command` follows.

    For a command other than the expert's own it says that something else is tried.
    """
    view = make_view(episode, HISTORY)
    decision = decide(view)
    if command == decision.command:
        return decision.thought
    wanted = parse_goal(view.task).wanted
    return f"need {wanted}. what is at {view.at or 'the middle'} is seen, so try {command}"


# -------------------------------------------------------------------------------- play and disturb


def solve(game: Game, *, max_turns: int) -> tuple[str, ...] | None:
    """The expert's winning commands for a game, or None when it needs more than `max_turns`."""
    engine = Engine(game)
    text, commands = engine.reset()
    past: tuple[tuple[str, str], ...] = ()
    for _ in range(max_turns):
        command = act(Episode(past, Observation(text, commands)))
        past = (*past, (text, command))
        text, commands, won = engine.step(command)
        if won:
            return tuple(sent for _, sent in past)
    return None


def disturb(rng: Uniform, commands: Sequence[str], *, absent: float = 0.3) -> str:
    """A random exploratory command, for noisy demonstrations.

    With probability `absent` it goes to any receptacle of the generated world, which this room may
    lack; else it is admissible: a verb drawn uniformly, then one of its commands (never `help`).
    """
    if rng.random() < absent:
        return f"go to {pick(rng, RECEPTACLE_NAMES)}"
    usable = [c for c in commands if c != "help"]
    verb = pick(rng, sorted({_kind(c) for c in usable}))
    return pick(rng, [c for c in usable if _kind(c) == verb])
