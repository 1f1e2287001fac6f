"""A small invented world to be looked up: people, towns, companies, rivers and short passages.

Every split has entities of its own, so nothing that is asked or answered in training occurs in a
held-out question; one corpus tells of all of them. Names are two words each, drawn from lists that
the splits share, so that a model that copies words can copy names it never saw.
"""

import dataclasses
import functools
import random
from typing import NamedTuple

from atod_jax.envs.searchqa.questions import SPLITS, Question
from atod_jax.envs.searchqa.retrieve import Bm25, Passage

KINDS = ("person", "town", "company", "river")
SIZES = {  # entities of a split, in the order of KINDS
    "train": (900, 360, 360, 180),
    "dev": (60, 24, 24, 12),
    "test": (60, 24, 24, 12),
}
WORDS = {  # first and second words
    "person": (
        "Ada Boris Clara Derek Edith Felix Greta Hugo Irma Jonas Karin Lukas Mira Nadia"
        " Oskar Petra Quinn Rosa Stefan Tilda Ulrich Vera Wanda Xenia Yusuf Zelda Agnes"
        " Bruno Celia Dario Elsa Frank Gilda Henrik Ines Jasper Klara Leon Marta Nils",
        "Abbot Barlow Carver Dunmore Ewing Farrow Gorman Harlow Ingram Jarvis Kendall"
        " Lowell Marlow Norwood Osborn Palmer Quigley Rowan Sutton Thorne Upton Vance"
        " Whitlock Yardley Ashby Bexley Crane Dalton Everett Finch",
    ),
    "town": (
        "Amber Birch Cedar Drift Ember Falcon Granite Hollow Iron Juniper Kestrel Linden"
        " Maple Nettle Opal Pebble Quarry Raven Silver Thistle Umber Violet Willow Yarrow"
        " Badger Copper Dapple Elder Flint Garnet",
        "Bridge Corner Dale Ferry Gate Harbour Hill Junction Market Port Ridge Square"
        " Tower Valley Wharf Cross",
    ),
    "company": (
        "Apex Beacon Comet Delta Eclipse Fusion Galaxy Horizon Icon Jupiter Keystone"
        " Lumen Meteor Nova Orbit Prism Quantum Rocket Saturn Titan Unity Vector Zenith"
        " Atlas Cosmos Dynamo Express Frontier Gemini Helix",
        "Bakery Cables Dairy Engines Foods Glass Hotels Media Optics Paints Records Shoes"
        " Tools Vehicles Watches Yarns",
    ),
    "river": (
        "Ashen Brisk Crooked Dusky Eager Frosty Gentle Hasty Idle Jolly Lazy Misty Noisy"
        " Old Pale Quiet Rapid Shady Tender Upper Vivid Weary Young Zesty",
        "Brook Creek Run Stream Water Wash Rill Burn Beck Channel",
    ),
}


class Relation(NamedTuple):
    """A fact that every entity of `subject` has; the texts hold the subject as {x}."""

    name: str
    subject: str
    object: str
    question: str
    phrase: str  # what stands for the object inside a longer question


RELATIONS = (
    Relation("born", "person", "town", "In which town was {x} born?",
             "the town where {x} was born"),
    Relation("works", "person", "company", "Which company does {x} work for?",
             "the company that {x} works for"),
    Relation("lies", "town", "river", "On which river does {x} lie?",
             "the river on which {x} lies"),
    Relation("mayor", "town", "person", "Who is the mayor of {x}?",
             "the mayor of {x}"),
    Relation("based", "company", "town", "In which town is {x} based?",
             "the town where {x} is based"),
    Relation("founder", "company", "person", "Who founded {x}?",
             "the founder of {x}"),
    Relation("rises", "river", "town", "Near which town does {x} rise?",
             "the town near which {x} rises"),
)  # fmt: skip
SENTENCES = {
    "person": "{x} was born in {born} and works for {works}.",
    "town": "{x} lies on {lies} and the mayor is {mayor}.",
    "company": "{x} is based in {based} and the founder is {founder}.",
    "river": "{x} rises near {rises}.",
}


@dataclasses.dataclass(frozen=True)
class World:
    """All passages, and the questions of every split."""

    passages: tuple[Passage, ...]
    questions: dict[str, tuple[Question, ...]]


def relations_of(kind: str) -> tuple[Relation, ...]:
    """The relations whose subject is of this kind."""
    return tuple(r for r in RELATIONS if r.subject == kind)


@functools.cache
def world(seed: int) -> World:
    """The world of a seed; a few milliseconds to make, the same in every process."""
    rng = random.Random(seed)
    names = {kind: _shuffled(rng, all_names(kind)) for kind in KINDS}
    passages: list[Passage] = []
    questions = {}
    for split in SPLITS:
        people = {kind: [names[kind].pop() for _ in range(n)] for kind, n in _sizes(split)}
        facts = _facts(rng, people)
        passages += _passages(people, facts, len(passages))
        questions[split] = tuple(_shuffled(rng, _questions(split, people, facts)))
    return World(tuple(passages), questions)


@functools.cache
def index(seed: int) -> Bm25:
    """The search engine over the passages of a world."""
    return Bm25(world(seed).passages)


def all_names(kind: str) -> list[str]:
    """Every name that an entity of this kind may bear."""
    firsts, seconds = (words.split() for words in WORDS[kind])
    return [f"{first} {second}" for first in firsts for second in seconds]


Names = dict[str, list[str]]  # kind -> entities
Facts = dict[tuple[str, str], str]  # (relation, subject) -> object


def _sizes(split: str) -> list[tuple[str, int]]:
    return list(zip(KINDS, SIZES[split], strict=True))


def _shuffled(rng: random.Random, items: list) -> list:
    return rng.sample(items, len(items))


def _facts(rng: random.Random, names: Names) -> Facts:
    return {
        (relation.name, subject): rng.choice(names[relation.object])
        for relation in RELATIONS
        for subject in names[relation.subject]
    }


def _passages(names: Names, facts: Facts, first: int) -> list[Passage]:
    told = []
    for kind in KINDS:
        for name in names[kind]:
            objects = {r.name: facts[r.name, name] for r in relations_of(kind)}
            told.append(f'"{name}"\n{SENTENCES[kind].format(x=name, **objects)}')
    return [Passage(str(number), contents) for number, contents in enumerate(told, first)]


def _questions(split: str, names: Names, facts: Facts) -> list[Question]:
    """All questions of one or two hops whose answer is not the entity they name."""
    found = []
    for first in RELATIONS:
        for name in names[first.subject]:
            middle = facts[first.name, name]
            asked = [("one-hop", first.question.format(x=name), middle)]
            phrase = first.phrase.format(x=name)
            for second in relations_of(first.object):
                end = facts[second.name, middle]
                asked.append(("two-hop", second.question.format(x=phrase), end))
            found += [entry for entry in asked if entry[2] != name]
    return [
        Question(f"{split}/{number}", dataset, split, question, (answer,))
        for number, (dataset, question, answer) in enumerate(found)
    ]
