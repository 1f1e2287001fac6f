"""The native household engine against TextWorld: recorded games word for word, then odd rules."""

import dataclasses
import json
import lzma
from concurrent.futures import ThreadPoolExecutor

import pytest

from atod_jax.envs.alfworld.affordances import infer_facts
from atod_jax.envs.alfworld.engine import NOTHING_HAPPENS, Engine, in_words
from atod_jax.envs.alfworld.game import Game
from atod_jax.envs.alfworld.pddl import read_problem


def _records(path):
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def expert(data_dir):
    return _records(data_dir / "alfworld" / "engine_expert.jsonl.xz")


@pytest.fixture(scope="module")
def games(expert) -> dict[str, Game]:
    return {
        r["id"]: read_problem(r["pddl_problem"], r["goal"], id=r["id"], split=r["split"])
        for r in expert
    }


def _differences(game: Game, steps: list[dict]) -> list[str]:
    """Every step at which the engine's text, commands or verdict differ from the recorded ones."""
    engine, found = Engine(game), []
    result = (*engine.reset(), engine.won)
    for number, step in enumerate(steps):
        if number:
            result = engine.step(step["action"])
        if result != (step["obs"], tuple(step["admissible"]), step["won"]):
            found.append(f"{game.id} step {number} {step.get('action')!r}: {result[0]!r}")
    return found


def test_every_step_of_the_recorded_expert_games(expert, games):
    differences = [d for r in expert for d in _differences(games[r["id"]], r["steps"])]
    assert sum(len(r["steps"]) for r in expert) > len(expert) > 0
    assert differences == []


def test_every_step_of_the_recorded_walks(data_dir, games):
    walks = _records(data_dir / "alfworld" / "engine_walks.jsonl.xz")
    differences = [d for w in walks for d in _differences(games[w["game"]], w["steps"])]
    assert sum(len(w["steps"]) for w in walks) > len(walks) > 0
    assert differences == []


def test_the_type_tables_play_the_recorded_games_just_as_well(expert, games):
    differences = [
        d
        for r in expert
        for d in _differences(dataclasses.replace(games[r["id"]], facts=None), r["steps"])
    ]
    assert differences == []


def test_the_type_tables_agree_with_the_stated_facts(games):
    exceptions = []
    for game in games.values():
        inferred, stated = infer_facts(game), game.facts
        held = {i.type for i in game.items}
        holding = {r.type for r in game.receptacles}
        pairs = {p for p in inferred.can_contain if p[0] in holding and p[1] in held}
        inferred = dataclasses.replace(inferred, can_contain=frozenset(pairs))
        exceptions += [
            (game.id, field.name)
            for field in dataclasses.fields(stated)
            if getattr(inferred, field.name) != getattr(stated, field.name)
        ]
    assert exceptions == []


def test_the_goal_expression_tells_the_task(expert, games):
    for record in expert:
        game = games[record["id"]]
        _, item, vessel, place, _ = record["id"].split("/")[0].split("-")
        look = game.task_type == "look_at_obj_in_light"
        assert game.task_type == record["task_type"]
        assert (game.object_target, vessel) == (item, "None")
        assert (game.toggle_target if look else game.parent_target) == place
        assert (game.parent_target if look else game.toggle_target) == ""


# -------------------------------------------------------------- rules, in a home made for the test


HOME = """
(define (problem home) (:domain alfred)
(:objects agent1 - agent  loc_0 loc_1 - location ; the object list is not needed
)
(:init
  (= (total-cost) 0) (atLocation agent1 loc_0)
  (receptacleType CounterTop_bar_1 CounterTopType) (receptacleAtLocation CounterTop_bar_1 loc_1)
  (receptacleType Fridge_bar_1 FridgeType) (receptacleAtLocation Fridge_bar_1 loc_2)
  (receptacleType Microwave_bar_1 MicrowaveType) (receptacleAtLocation Microwave_bar_1 loc_2)
  (receptacleType Sink_bar_1_bar_SinkBasin SinkBasinType)
  (receptacleAtLocation Sink_bar_1_bar_SinkBasin loc_3)
  (receptacleType Shelf_bar_1 ShelfType) (receptacleAtLocation Shelf_bar_1 loc_4)
  (receptacleType Shelf_bar_2 ShelfType) (receptacleAtLocation Shelf_bar_2 loc_4)
  (receptacleType Shelf_bar_3 ShelfType) (receptacleAtLocation Shelf_bar_3 loc_4)
  (openable Fridge_bar_1) (openable Microwave_bar_1)
  (objectType Apple_bar__minus_2 AppleType) (objectType Apple_bar__plus_1 AppleType)
  (objectType Knife_bar_1 KnifeType) (objectType Bowl_bar_1 BowlType)
  (objectType Pen_bar_1 PenType) (objectType DeskLamp_bar_1 DeskLampType)
  (pickupable Apple_bar__minus_2) (pickupable Apple_bar__plus_1) (pickupable Knife_bar_1)
  (pickupable Bowl_bar_1) (pickupable Pen_bar_1)
  (toggleable DeskLamp_bar_1) (isReceptacleObject Bowl_bar_1)
  (sliceable Apple_bar__minus_2) (sliceable Apple_bar__plus_1)
  (cleanable Apple_bar__plus_1) (heatable Apple_bar__plus_1) (coolable Apple_bar__plus_1)
  (cleanable Apple_bar__minus_2) (heatable Apple_bar__minus_2) (coolable Apple_bar__minus_2)
  (inReceptacle Apple_bar__plus_1 Fridge_bar_1) (objectAtLocation Apple_bar__plus_1 loc_2)
  (inReceptacle Apple_bar__minus_2 CounterTop_bar_1) (objectAtLocation Apple_bar__minus_2 loc_1)
  (inReceptacle Knife_bar_1 CounterTop_bar_1) (objectAtLocation Knife_bar_1 loc_1)
  (inReceptacle Bowl_bar_1 CounterTop_bar_1) (objectAtLocation Bowl_bar_1 loc_1)
  (inReceptacle Pen_bar_1 Shelf_bar_2) (objectAtLocation Pen_bar_1 loc_4)
  (inReceptacle DeskLamp_bar_1 Shelf_bar_1) (objectAtLocation DeskLamp_bar_1 loc_4)
  (canContain CounterTopType AppleType) (canContain CounterTopType KnifeType)
  (canContain CounterTopType BowlType) (canContain CounterTopType PenType)
  (canContain FridgeType AppleType) (canContain FridgeType BowlType)
  (canContain MicrowaveType AppleType) (canContain MicrowaveType BowlType)
  (canContain SinkBasinType AppleType) (canContain SinkBasinType KnifeType)
  (canContain ShelfType PenType) (canContain ShelfType BowlType))
(:goal (and (exists (?r - receptacle) (exists (?o - object)
  (and (inReceptacle ?o ?r) (objectType ?o PenType) (receptacleType ?r CounterTopType)))))))
"""

SHELVES = "You are facing the shelf 3, shelf 2, and shelf 1. Next to it, you see"

# (command, answer) as TextWorld 1.7.0 with alfworld 0.4.2 answered them for this very problem.
ANSWERS = (
    ("look", "You are in the middle of a room. Looking quickly around you, you see nothing."),
    (
        "go to countertop 1",
        "You arrive at countertop 1. On the countertop 1, you see a apple 2, a bowl 1, and a"
        " knife 1.",
    ),
    ("examine bowl 1", NOTHING_HAPPENS),  # only a held item can be examined
    ("take bowl 1 from countertop 1", "You pick up the bowl 1 from the countertop 1."),
    ("examine bowl 1", "This is a normal bowl 1. In it, you see nothing."),
    ("go to fridge 1", "You arrive at fridge 1. The fridge 1 is closed."),
    ("move bowl 1 to fridge 1", NOTHING_HAPPENS),
    ("open fridge 1", "You open the fridge 1. The fridge 1 is open. In it, you see a apple 1."),
    ("move bowl 1 to fridge 1", "You move the bowl 1 to the fridge 1."),
    ("close fridge 1", "You close the fridge 1."),
    (
        "go to countertop 1",
        "You arrive at countertop 1. On the countertop 1, you see a apple 2, and a knife 1.",
    ),
    ("take knife 1 from countertop 1", "You pick up the knife 1 from the countertop 1."),
    ("slice apple 2 with knife 1", "You sliced the apple 2 with the knife 1."),
    ("slice apple 2 with knife 1", "You sliced the apple 2 with the knife 1."),
    ("slice apple 1 with knife 1", NOTHING_HAPPENS),
    ("go to microwave 1", "You arrive at microwave 1. The microwave 1 is closed."),
    ("slice apple 1 with knife 1", "You sliced the apple 1 with the knife 1."),  # behind the door
    ("look", "You are facing the fridge 1, and microwave 1. Next to it, you see nothing."),
    ("go to sinkbasin 1", "You arrive at sinkbasin 1. On the sinkbasin 1, you see nothing."),
    ("move knife 1 to sinkbasin 1", "You move the knife 1 to the sinkbasin 1."),
    (
        "go to countertop 1",
        "You arrive at countertop 1. On the countertop 1, you see a apple 2.",
    ),
    ("take apple 2 from countertop 1", "You pick up the apple 2 from the countertop 1."),
    ("examine apple 2", "This is a sliced apple 2."),
    ("go to microwave 1", "You arrive at microwave 1. The microwave 1 is closed."),
    ("heat apple 2 with microwave 1", "You heat the apple 2 using the microwave 1."),
    ("examine apple 2", "This is a hot sliced apple 2."),
    ("cool apple 2 with fridge 1", "You cool the apple 2 using the fridge 1."),
    ("examine apple 2", "This is a cool sliced apple 2."),
    ("go to sinkbasin 1", "You arrive at sinkbasin 1. On the sinkbasin 1, you see a knife 1."),
    ("clean apple 2 with sinkbasin 1", "You clean the apple 2 using the sinkbasin 1."),
    ("examine apple 2", "This is a cool and clean sliced apple 2."),
    ("inventory", "You are carrying: a apple 2."),
    (" inventory ", "You are carrying: a apple 2."),
    ("Inventory", NOTHING_HAPPENS),
    ("go to microwave 1", "You arrive at microwave 1. The microwave 1 is closed."),
    (
        "open microwave 1",
        "You open the microwave 1. The microwave 1 is open. In it, you see nothing.",
    ),
    ("move apple 2 to microwave 1", "You move the apple 2 to the microwave 1."),
    ("examine microwave 1", "The microwave 1 is open. In it, you see a apple 2."),
    ("go to shelf 1", "You arrive at shelf 1. On the shelf 1, you see nothing."),
    ("use desklamp 1", "You turn on the desklamp 1."),
    ("use desklamp 1", "You turn on the desklamp 1."),
    ("take desklamp 1 from shelf 3", NOTHING_HAPPENS),
    ("take pen 1 from shelf 2", "You pick up the pen 1 from the shelf 2."),
    ("move pen 1 to shelf 1", "You move the pen 1 to the shelf 1."),
    ("look", f"{SHELVES} a pen 1."),  # it lies in shelf 1, and is listed as beside the shelves
    ("take pen 1 from shelf 1", "You pick up the pen 1 from the shelf 1."),
    ("examine pen 1", "There's nothing special about pen 1."),
    ("look", f"{SHELVES} nothing."),
    ("move pen 1 to shelf 3", "You move the pen 1 to the shelf 3."),
    ("look", f"{SHELVES} a pen 1, and a pen 1."),
    ("take pen 1 from shelf 3", "You pick up the pen 1 from the shelf 3."),
    ("move pen 1 to shelf 2", "You move the pen 1 to the shelf 2."),
    ("look", f"{SHELVES} a pen 1, and a pen 1."),
    ("go to shelf 2", NOTHING_HAPPENS),  # already there
    ("take pen 1 from shelf 2", "You pick up the pen 1 from the shelf 2."),
    (
        "go to countertop 1",
        "You arrive at countertop 1. On the countertop 1, you see nothing.",
    ),
    ("move pen 1 to countertop 1", "You move the pen 1 to the countertop 1."),
)


@pytest.fixture
def home() -> Game:
    return read_problem(HOME, "put a pen in countertop", id="home", split="train")


def test_the_rules_answer_as_textworld_does(home):
    engine = Engine(home)
    answers = [engine.step(command) for command, _ in ANSWERS]
    assert [text for text, _, _ in answers] == [text for _, text in ANSWERS]
    assert [won for _, _, won in answers] == [False] * (len(ANSWERS) - 1) + [True]


def test_reset_forgets_everything(home):
    engine = Engine(home)
    opening = engine.reset()
    for command, _ in ANSWERS:
        engine.step(command)
    assert engine.reset() == opening == Engine(home).reset()
    assert (engine.holding, engine.won, engine.cleaned) == (None, False, frozenset())


def test_a_game_that_starts_at_a_receptacle_opens_facing_it(home):
    opening, commands = Engine(dataclasses.replace(home, agent_start="loc_3")).reset()
    assert (
        opening.split("\n\n")[1] == "You are facing the sinkbasin 1. Next to it, you see nothing."
    )
    assert "examine sinkbasin 1" in commands
    assert "go to sinkbasin 1" not in commands


def _play(game: Game, *commands: str) -> list[bool]:
    engine = Engine(game)
    answers = [engine.step(command) for command in commands]
    assert NOTHING_HAPPENS not in [text for text, _, _ in answers]
    return [won for _, _, won in answers]


def test_two_objects_must_share_one_receptacle(home):
    items = tuple(
        dataclasses.replace(item, type="Bowl") if item.name == "pen 1" else item
        for item in home.items
    )
    game = dataclasses.replace(
        home,
        task_type="pick_two_obj_and_place",
        object_target="Bowl",
        parent_target="Shelf",
        items=items,
    )
    won = _play(
        game,
        *("go to countertop 1", "take bowl 1 from countertop 1", "go to shelf 1"),
        *("move bowl 1 to shelf 1", "take pen 1 from shelf 2", "move pen 1 to shelf 1"),
    )
    assert won == [False, False, False, False, False, True]  # shelves 1 and 2 hold one each before


def test_cooling_undoes_heating_in_the_goal(home):
    game = dataclasses.replace(
        home,
        task_type="pick_heat_then_place_in_recep",
        object_target="Apple",
        parent_target="CounterTop",
    )
    start = ("go to countertop 1", "take apple 2 from countertop 1", "go to fridge 1")
    heat, cool = "heat apple 2 with microwave 1", "cool apple 2 with fridge 1"
    end = ("go to countertop 1", "move apple 2 to countertop 1")
    assert _play(game, *start, heat, *end)[-1]
    assert not _play(game, *start, heat, cool, *end)[-1]
    assert _play(game, *start, cool, heat, *end)[-1]


def test_light_may_be_switched_on_before_the_object_is_fetched(home):
    game = dataclasses.replace(
        home,
        task_type="look_at_obj_in_light",
        object_target="Knife",
        parent_target="",
        toggle_target="DeskLamp",
    )
    won = _play(
        game,
        *("go to shelf 1", "use desklamp 1", "go to countertop 1"),
        *("take knife 1 from countertop 1", "go to shelf 2"),
    )
    assert won == [False, False, False, False, True]


def test_what_an_expert_can_read(home):
    engine = Engine(home)
    engine.step("go to fridge 1")
    assert (engine.loc, engine.here) == ("loc_2", ("fridge 1", "microwave 1"))
    assert (engine.is_open("fridge 1"), engine.is_open("shelf 1")) == (False, True)
    assert engine.contents("countertop 1") == ("apple 2", "bowl 1", "knife 1")
    for command in ("open fridge 1", "take apple 1 from fridge 1", "heat apple 1 with microwave 1"):
        engine.step(command)
    assert (engine.holding, engine.is_open("fridge 1")) == ("apple 1", True)
    assert (engine.heated, engine.cooled) == ({"apple 1"}, frozenset())
    engine.step("cool apple 1 with fridge 1")
    assert (engine.heated, engine.cooled) == (frozenset(), {"apple 1"})


def test_games_played_in_threads_do_not_disturb_each_other(home):
    def play(_):
        engine = Engine(home)
        return [engine.step(command)[0] for command, _ in ANSWERS]

    with ThreadPoolExecutor(8) as pool:
        played = list(pool.map(play, range(64)))
    assert played == [[text for _, text in ANSWERS]] * 64


def test_words_of_a_list():
    assert in_words(()) == "nothing"
    assert in_words(["a x 1"]) == "a x 1"
    assert in_words(["a x 2", "a x 1"]) == "a x 2, and a x 1"
    assert in_words(["a x 3", "a x 2", "a x 1"]) == "a x 3, a x 2, and a x 1"
