"""The scripted expert: wins everywhere, sees only the compact prompt, recovers from anything."""

import random

import numpy as np
import pytest

from atod_jax.envs import alfworld
from atod_jax.envs.alfworld import expert, generate, prompts
from atod_jax.envs.alfworld.engine import Engine
from atod_jax.envs.alfworld.furniture import RECEPTACLE_NAMES
from atod_jax.envs.alfworld.game import TASK_TYPES, Game, Item, Receptacle
from atod_jax.envs.base import Episode, Observation


def play(game, *, turns, noise=0.0, seed=0):
    """(episode, expert command, executed command) per turn, and whether the game was won."""
    rng = random.Random(seed)
    engine = Engine(game)
    text, commands = engine.reset()
    past, turns_played, won = (), [], False
    while not won and len(past) < turns:
        episode = Episode(past, Observation(text, commands))
        command = executed = expert.act(episode)
        if rng.random() < noise:
            executed = expert.disturb(rng, commands)
        turns_played.append((episode, command, executed))
        past = (*past, (text, executed))
        text, commands, won = engine.step(executed)
    return turns_played, won


def episode_of(task, *pairs, room="a fridge 1, a shelf 2, and a shelf 1"):
    """An episode in a three-receptacle room after (command, answer) pairs."""
    opening = f"Looking quickly around you, you see {room}.\n\nYour task is to: {task}."
    texts = [opening, *(answer for _, answer in pairs)]
    past = tuple(zip(texts, (command for command, _ in pairs)))
    return Episode(past, Observation(texts[-1]))


# ------------------------------------------------------------------------------------ whole games


@pytest.mark.parametrize("split", alfworld.ENVIRONMENT.splits)
def test_wins_every_generated_game_within_the_horizon(split):
    won = dict.fromkeys(TASK_TYPES, 0)
    for index in range(300):
        game = generate.generate(split, index, seed=11)
        turns, success = play(game, turns=20)
        assert success, game.id
        assert tuple(executed for *_, executed in turns) == game.plan
        won[game.task_type] += 1
    assert set(won.values()) == {50}


def test_wins_without_selection_given_time():
    """Games are kept for being winnable in 20 turns; unselected ones are won too, only later."""
    rng = random.Random(4)
    size = generate.DEFAULT_SIZE
    for index in range(240):
        kind = TASK_TYPES[index % 6]
        game = generate._attempt(rng, "train", task_type=kind, name="any", size=size)
        assert game is None or expert.solve(game, max_turns=40)


def test_wins_after_half_of_the_commands_were_random():
    games = [generate.generate("train", i) for i in range(120)]
    lost = [g.id for i, g in enumerate(games) if not play(g, turns=200, noise=0.5, seed=i)[1]]
    assert not lost


def test_expert_commands_are_admissible_even_after_disturbance():
    for index in range(120):
        turns, _ = play(generate.generate("valid_seen", index), turns=20, noise=0.4, seed=index)
        for episode, command, _ in turns:
            assert command in episode.current.commands


@pytest.mark.parametrize("split", ["valid_seen", "valid_unseen"])
def test_wins_real_games(data_dir, split):
    """Every third real game; many receptacles share a spot there, or are listed nowhere."""
    games = alfworld.Config(games=str(data_dir / "alfworld" / "games.jsonl.xz"))
    for task in alfworld.tasks(games, split)[::3]:
        assert expert.solve(task.payload, max_turns=150), task.id


def test_decides_from_the_compact_prompt_alone():
    """Two turns with the same prompt get the same command and the same thought."""
    seen = {}
    for index in range(0, 240):
        game = generate.generate("train", index)
        for episode, command, _ in play(game, turns=20, noise=0.3, seed=index)[0]:
            prompt = prompts.compact_prompt(episode, expert.HISTORY)
            answer = (command, expert.thought(episode, command))
            assert seen.setdefault(prompt, answer) == answer
    assert len(seen) > 2000


# -------------------------------------------------------------------------------------------- goals


@pytest.mark.parametrize(
    ("sentence", "goal"),
    [
        ("put a mug in shelf", expert.Goal("mug", "shelf")),
        ("put some soapbar on toilet", expert.Goal("soapbar", "toilet")),
        ("put a clean mug in shelf", expert.Goal("mug", "shelf", "clean")),
        ("heat some egg and put it in fridge", expert.Goal("egg", "fridge", "hot")),
        ("cool some egg and put it in sinkbasin", expert.Goal("egg", "sinkbasin", "cool")),
        ("clean some pan and put it in fridge", expert.Goal("pan", "fridge", "clean")),
        ("put two cd in safe", expert.Goal("cd", "safe", two=True)),
        ("find two cd and put them in safe", expert.Goal("cd", "safe", two=True)),
        ("look at cd under the desklamp", expert.Goal("cd", lamp="desklamp")),
        ("examine the cd with the floorlamp", expert.Goal("cd", lamp="floorlamp")),
    ],
)
def test_goal_sentences(sentence, goal):
    assert expert.parse_goal(sentence) == goal


def test_all_recorded_goals_parse(data_dir):
    games = alfworld.Config(games=str(data_dir / "alfworld" / "games.jsonl.xz"))
    for task in alfworld.tasks(games, "train"):
        goal, game = expert.parse_goal(task.payload.goal), task.payload
        assert goal.target == game.object_target.lower()
        assert goal.place == game.parent_target.lower()
        assert goal.lamp == game.toggle_target.lower()
        assert goal.two == ("two" in game.task_type)


def test_unknown_goal_is_named():
    with pytest.raises(ValueError, match="juggle three eggs"):
        expert.parse_goal("juggle three eggs")


# ----------------------------------------------------------------------------------- single turns

AT_SHELF = ("go to shelf 2", "You arrive at shelf 2. On the shelf 2, you see a mug 1, and a pen 2.")
AT_FRIDGE = ("go to fridge 1", "You arrive at fridge 1. The fridge 1 is closed.")
TAKES_PEN = ("take pen 2 from shelf 2", "You pick up the pen 2 from the shelf 2.")
FAILS = "Nothing happens."


@pytest.mark.parametrize(
    ("pairs", "command"),
    [
        ([], "go to fridge 1"),
        ([AT_FRIDGE], "open fridge 1"),
        ([AT_SHELF], "take mug 1 from shelf 2"),
        ([AT_SHELF, ("close shelf 2", FAILS)], "take mug 1 from shelf 2"),
        ([AT_SHELF, ("look", "x"), ("look", "x"), ("look", "x")], "examine shelf 2"),
        # a wrong object goes back, or on to the first receptacle that takes such a thing
        ([AT_SHELF, TAKES_PEN], "move pen 2 to shelf 2"),
        ([AT_SHELF, TAKES_PEN, AT_FRIDGE], "go to shelf 2"),
        # receptacles that share a spot refuse `go to`, so they are examined from here
        ([AT_SHELF, TAKES_PEN, ("go to shelf 1", FAILS)], "examine shelf 1"),
        ([AT_SHELF, ("go to shelf 1", FAILS), ("examine shelf 1", FAILS)], "go to fridge 1"),
        # a receptacle this room lacks changes nothing
        ([AT_SHELF, ("go to bed 1", FAILS)], "take mug 1 from shelf 2"),
    ],
)
def test_single_decisions(pairs, command):
    assert expert.act(episode_of("put a mug in shelf", *pairs)) == command


def test_two_objects_stay_where_they_were_placed():
    task = "put two pen in shelf"
    here = ("go to shelf 2", "You arrive at shelf 2. On the shelf 2, you see a pen 2.")
    other = ("go to shelf 1", "You arrive at shelf 1. On the shelf 1, you see a pen 1.")
    assert expert.act(episode_of(task, here)) == "go to shelf 1"
    assert expert.act(episode_of(task, here, other)) == "take pen 1 from shelf 1"
    taken = ("take pen 1 from shelf 1", "You pick up the pen 1 from the shelf 1.")
    assert expert.act(episode_of(task, here, other, taken)) == "go to shelf 2"


def test_lamp_is_used_where_it_stands():
    task = "look at pen under the desklamp"
    both = "You arrive at shelf 2. On the shelf 2, you see a desklamp 1, and a pen 2."
    assert expert.act(episode_of(task, ("go to shelf 2", both), TAKES_PEN)) == "use desklamp 1"
    assert expert.act(episode_of(task, AT_SHELF, TAKES_PEN)) == "go to shelf 1"


def test_empty_room_is_an_error():
    with pytest.raises(ValueError, match="no receptacles"):
        expert.act(episode_of("put a mug in shelf", room="nothing"))


# ----------------------------------------------------------------------- thoughts and disturbance


def test_thoughts_name_goal_sight_and_next_step():
    task = "put a hot mug in shelf"
    assert expert.thought(episode_of(task, AT_SHELF), "take mug 1 from shelf 2") == (
        "need hot mug. shelf 2 has mug 1, it is the one to find, so take it"
    )
    empty = ("go to shelf 2", "You arrive at shelf 2. On the shelf 2, you see a pen 2.")
    assert expert.thought(episode_of(task, empty), "go to shelf 1") == (
        "need hot mug. shelf 2 has pen 2, no mug, so go on to shelf 1"
    )


def test_thought_for_another_command_names_that_command():
    thought = expert.thought(episode_of("put a mug in shelf", AT_SHELF), "look")
    assert thought == "need mug. what is at shelf 2 is seen, so try look"


def test_thoughts_never_speak_in_the_first_person():
    for index in range(60):
        for episode, command, _ in play(generate.generate("train", index), turns=20)[0]:
            words = expert.thought(episode, command).replace(",", "").replace(".", "").split()
            assert not {"i", "I", "me", "my"} & set(words)
            assert 8 <= len(words) <= 30


@pytest.mark.parametrize("rng", [random.Random(0), np.random.default_rng(0)])
def test_disturbances(rng):
    """2000 draws: 30 % go anywhere; the others are admissible, `help` never, each verb alike."""
    commands = ("go to bed 1", "go to desk 1", "help", "look", "take pen 1 from shelf 1")
    drawn = [expert.disturb(rng, commands, absent=0.3) for _ in range(2000)]
    assert all(type(command) is str for command in drawn)
    assert "help" not in drawn
    anywhere = {f"go to {name}" for name in RECEPTACLE_NAMES}
    assert set(drawn) == anywhere | (set(commands) - {"help"})
    for command in ("look", "take pen 1 from shelf 1"):
        assert abs(drawn.count(command) / 2000 - 0.7 / 3) < 0.04
    assert {expert.disturb(rng, commands, absent=0.0) for _ in range(99)} <= set(commands)


def test_unsolvable_game_gives_none():
    game = Game(
        id="empty",
        split="train",
        task_type="pick_and_place_simple",
        goal="put a mug in shelf",
        object_target="Mug",
        parent_target="Shelf",
        toggle_target="",
        agent_start="loc 0",
        receptacles=(Receptacle("shelf 1", "Shelf", False, "loc 1"),),
        items=(Item("pen 1", "Pen", "shelf 1"),),
    )
    assert expert.solve(game, max_turns=10) is None
