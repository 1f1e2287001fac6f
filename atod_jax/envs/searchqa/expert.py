"""A scripted player of the generated world, for demonstrations and as a proof that it is solvable.

It decides from the question and the shown results alone: it searches for the entity that the
question names, reads on in its passage, searches for what that leads to, and answers. A question
of no known form is searched for as it stands and answered with the title of the best passage.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from atod_jax.envs.base import Episode
from atod_jax.envs.scripted import Decision, Uniform, pick
from atod_jax.envs.searchqa import generate, information
from atod_jax.envs.searchqa.generate import KINDS, RELATIONS, SENTENCES, Relation
from atod_jax.envs.searchqa.prompts import answered, bare

HISTORY = 4


def _pattern(text: str) -> re.Pattern[str]:
    """A text with {places} as a pattern with groups of the same names."""
    return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+?)", re.escape(text)) + r"\Z")


_ASKS = [(r, _pattern(r.question)) for r in RELATIONS]
_MEANS = [(r, _pattern(r.phrase)) for r in RELATIONS]
_TELLS = {kind: _pattern(sentence) for kind, sentence in SENTENCES.items()}


class Plan(NamedTuple):
    """Where a question starts and which relations lead from there to the answer."""

    entity: str
    path: tuple[Relation, ...]


def read_question(question: str) -> Plan:
    """The plan for a question; without a path where its form is not known."""
    for relation, asks in _ASKS:
        if match := asks.match(question):
            inner = _read_phrase(match["x"])
            return Plan(inner.entity, (*inner.path, relation))
    return Plan(question, ())


def _read_phrase(phrase: str) -> Plan:
    for relation, means in _MEANS:
        if match := means.match(phrase):
            return Plan(match["x"], (relation,))
    return Plan(phrase, ())


def decide(episode: Episode) -> Decision:
    """What the expert does now."""
    plan = read_question(episode.opening)
    steps = answered(episode, HISTORY)
    asked = {bare(command) for _, command, _ in steps}
    passages = [shown for _, _, text in steps for shown in information.read(text)]
    if not plan.path:
        return _guess(plan.entity, passages, bool(asked))
    known = {shown.title: _objects(shown.text) for shown in passages}
    at, told = plan.entity, ""
    for relation in plan.path:
        if relation.name not in known.get(at, {}):
            return _look_up(at, told, tried=f"search {at}" in asked)
        at, told = known[at][relation.name], f"{relation.phrase.format(x=at)} is {{}}. "
        told = told.format(at)
    return Decision(f"<answer>{at}</answer>", f"{told}that answers it")


def _look_up(entity: str, told: str, *, tried: bool) -> Decision:
    """A search for `entity`; the second time with a different wording."""
    query = f"about {entity}" if tried else entity
    return Decision(f"<search>{query}</search>", f"{told}look for {entity}")


def _guess(question: str, passages: Sequence[information.Shown], searched: bool) -> Decision:
    if not searched:
        return Decision(f"<search>{question}</search>", "look for it")
    title = passages[0].title if passages else "unknown"
    return Decision(f"<answer>{title}</answer>", f"the best passage is about {title}")


def _objects(text: str) -> dict[str, str]:
    """Relation -> object, as a passage tells them; empty for a text of no known form."""
    matches = (_TELLS[kind].match(text) for kind in KINDS)
    return next((match.groupdict() for match in matches if match), {})


def act(episode: Episode) -> str:
    """The command for the present turn (see `decide`)."""
    return decide(episode).command


def thought(episode: Episode, command: str) -> str:
    """A short thought that leads to `command`; another's command is merely tried."""
    decision = decide(episode)
    return decision.thought if command == decision.command else f"try {bare(command)}"


def disturb(rng: Uniform, commands: Sequence[str], *, absent: float = 0.3) -> str:
    """A random command: with probability `absent` an answer, else a search, for a random name."""
    kind = "answer" if rng.random() < absent else "search"
    return f"<{kind}>{pick(rng, generate.all_names(pick(rng, KINDS)))}</{kind}>"
