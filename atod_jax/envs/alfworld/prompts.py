"""How a household episode is shown to a model, and how its answer becomes a command.

`View` is the state that can be rebuilt from shown text alone. The compact template prints exactly
a `View`, and the scripted expert decides from exactly a `View`, so the expert is imitable by
construction. Nothing here looks inside the engine.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence

from atod_jax.envs import tagged
from atod_jax.envs.alfworld.affordances import CAN_CONTAIN
from atod_jax.envs.base import Episode, Projection, Template

TASK_MARKER = "Your task is to: "
NAME = r"[a-z]+ \d+"
STATES = ("clean", "hot", "cool")

_MADE_BY = {"heat": "hot", "cool": "cool", "clean": "clean"}
_UNDOES = {"hot": "cool", "cool": "hot"}
_SEES = re.compile(rf"(?:On the|The) ({NAME})(?: is open\. In it)?, you see (.+)\.$")
_CLOSED = re.compile(rf"The ({NAME}) is closed\.$")
_ARRIVES = re.compile(rf"You arrive at ({NAME})\.")
_TAKES = re.compile(rf"You pick up the ({NAME}) from the ({NAME})\.$")
_MOVES = re.compile(rf"You move the ({NAME}) to the ({NAME})\.$")
_TREATS = re.compile(rf"You (heat|cool|clean) the ({NAME}) using the ({NAME})\.$")
_CLOSES = re.compile(rf"You close the ({NAME})\.$")
_TURNS_ON = re.compile(rf"You turn on the ({NAME})\.$")
_NAME = re.compile(NAME)
_RECEPTACLE_KINDS = frozenset(holder.lower() for holder, _ in CAN_CONTAIN)

# ------------------------------------------------------------------------------------ reading texts


@dataclasses.dataclass(frozen=True)
class Event:
    """What one observation says.

    `kind`: see | closed | arrive | take | move | close | heat | cool | clean | use | fail | other.
    """

    kind: str
    place: str = ""  # the receptacle spoken of
    item: str = ""
    items: tuple[str, ...] = ()  # contents, for "see"
    text: str = ""  # first line of the observation, for "other"


@functools.lru_cache(maxsize=65536)
def read_event(observation: str) -> Event:
    """The event in one engine answer; texts of no known form become kind "other"."""
    if observation == "Nothing happens.":
        return Event("fail")
    if match := _SEES.search(observation):
        return Event("see", match[1], items=tuple(_NAME.findall(match[2])))
    if match := _CLOSED.search(observation):
        return Event("closed", match[1])
    if match := _TAKES.match(observation):
        return Event("take", match[2], match[1])
    if match := _MOVES.match(observation):
        return Event("move", match[2], match[1])
    if match := _TREATS.match(observation):
        return Event(match[1], match[3], match[2])
    return _read_rare(observation)


def _read_rare(observation: str) -> Event:
    if match := _CLOSES.match(observation):
        return Event("close", match[1])
    if match := _TURNS_ON.match(observation):
        return Event("use", item=match[1])
    if match := _ARRIVES.match(observation):
        return Event("arrive", match[1])
    return Event("other", text=observation.strip().partition("\n")[0])


@functools.lru_cache(maxsize=4096)
def read_opening(opening: str) -> tuple[str, tuple[str, ...]]:
    """(task sentence without its final dot, receptacles in listed order) of a first observation.

    The list is empty where the player does not start in the middle of the room.

    Raises:
      ValueError: the text has no task line.
    """
    scene, marker, task = opening.partition(TASK_MARKER)
    if not marker:
        raise ValueError(f"no {TASK_MARKER!r} in the first observation: {opening[:80]!r}")
    listed = scene.partition("Looking quickly around you, you see ")[2]
    return task.strip().removesuffix("."), tuple(_NAME.findall(listed))


def _room_of(commands: Sequence[str]) -> tuple[str, ...]:
    """The room as the admissible commands reveal it, in the order of an opening."""
    named = [c.removeprefix("go to ").removeprefix("examine ") for c in commands]
    known = {n for n in named if _NAME.fullmatch(n) and n.partition(" ")[0] in _RECEPTACLE_KINDS}
    return tuple(sorted(known, key=lambda n: (n.partition(" ")[0], -int(n.partition(" ")[2]))))


# ----------------------------------------------------------------------------------------- the view


@dataclasses.dataclass(frozen=True)
class View:
    """What a bounded-memory player knows: all of it is printed by the compact template."""

    task: str
    room: tuple[str, ...]
    at: str  # receptacle last dealt with, "" before the first
    holding: str  # item in hand, "" for none
    states: tuple[str, ...]  # of the held item, in the order of STATES
    recent: tuple[tuple[str, Event], ...]  # (command, its answer), oldest first


def make_view(episode: Episode, history: int) -> View:
    """Rebuild the `View` from shown texts; the last `history` (>= 1) answered commands are kept.

    Raises:
      ValueError: the first observation has no task line.
    """
    task, room = read_opening(episode.opening)
    room = room or _room_of(episode.current.commands)
    observations = [shown for shown, _ in episode.past[1:]] + [episode.current.text]
    # at the start there is an observation and no command yet
    pairs = zip(episode.past, observations, strict=False)
    answered = [(command, read_event(text)) for (_, command), text in pairs]
    at, holding, states = _replay([event for _, event in answered])
    recent = tuple(answered[-max(history, 1) :])
    return View(task, room, at, holding, states, recent)


def _replay(events: Sequence[Event]) -> tuple[str, str, tuple[str, ...]]:
    at, holding = "", ""
    marks: dict[str, set[str]] = {}
    for event in events:
        at = event.place or at
        if event.kind == "take":
            holding = event.item
        elif event.kind == "move":
            holding = ""
        elif event.kind in _MADE_BY:
            state = _MADE_BY[event.kind]
            marks.setdefault(event.item, set()).add(state)
            marks[event.item].discard(_UNDOES.get(state, ""))
    held = marks.get(holding, set())
    return at, holding, tuple(s for s in STATES if s in held)


# --------------------------------------------------------------------------------- compact template

MAX_COMMAND_CHARS = 48  # bounds what a garbled answer adds to later prompts


def compact_prompt(episode: Episode, history: int) -> str:
    """The terse prompt: task, room, answered commands (the newest last) and a status line."""
    view = make_view(episode, history)
    lines = [f"task: {view.task}", f"room: {' '.join(view.room)}"]
    lines += [f"{command}: {describe(event)}" for command, event in view.recent]
    held = " ".join((*view.states, view.holding)) if view.holding else "nothing"
    lines.append(f"at {view.at or 'the middle'} hold {held}")
    return "\n".join(lines)


def describe(event: Event) -> str:
    """The few words that stand for an observation in the compact prompt."""
    if event.kind == "see":
        return " ".join(event.items) or "nothing"
    if event.kind == "closed":
        return "closed"
    if event.kind == "fail":
        return "nothing happens"
    return event.text or "ok"


def compact_project(response: str, commands: Sequence[str]) -> Projection:
    """The text after an optional think block; valid iff it is admissible and not `help`."""
    text = response.rpartition("</think>")[2]
    command = " ".join(text.split())[:MAX_COMMAND_CHARS].rstrip()
    valid = command != "help" and command in commands
    return Projection(command, valid, "" if valid else "not admissible")


def compact_respond(command: str, thought: str) -> str:
    """`<think>thought</think>command`, or the bare command without a thought."""
    return f"<think>{thought}</think>{command}" if thought else command


# ----------------------------------------------------------------------------------- paper template

PAPER_NOW = "What you observe now: "
PAPER_ACTIONS = "Admissible actions now: ["
paper_project = functools.partial(tagged.project, fallback=30)  # characters
PAPER_ROLE = "You act as an expert agent in ALFRED, a world of household rooms."
PAPER_INSTRUCTIONS = (
    "It is your turn now. Reason step by step about the situation first, inside <think> </think>."
    " After the reasoning, choose one of the admissible actions and write it inside"
    " <action> </action>."
)


def paper_prompt(episode: Episode, history: int) -> str:
    """The full prompt: with `history` = 0 or on the first turn only the current observation.

    Raises:
      ValueError: a history is shown and the first observation has no task line.
    """
    if history <= 0 or not episode.past:
        middle = [PAPER_ROLE, f"{PAPER_NOW}{episode.current.text}"]
    else:
        middle = _past_lines(episode, history)
    shown = "\n ".join(f"'{c}'" for c in episode.current.commands if c != "help")
    return "\n".join([*middle, f"{PAPER_ACTIONS}{shown}].", "", PAPER_INSTRUCTIONS])


def _past_lines(episode: Episode, history: int) -> list[str]:
    taken, step = tagged.past_lines(episode, history)
    task = _task_line(episode.opening)
    now = f"{step} {PAPER_NOW}{episode.current.text}"
    return [f"{PAPER_ROLE} Your task is to: {task}", taken, now]


def _task_line(opening: str) -> str:
    read_opening(opening)  # the one place that explains a missing task line
    return opening.partition(TASK_MARKER)[2].strip()


TEMPLATES = {
    "paper": Template(paper_prompt, paper_project, tagged.respond, instructions=PAPER_INSTRUCTIONS),
    "compact": Template(compact_prompt, compact_project, compact_respond),
}
