"""What the model is shown and how its answer is read, against the recorded engine texts."""

import json
import lzma

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atod_jax.envs.alfworld import prompts
from atod_jax.envs.base import Episode, Observation, Projection

OPENING = (
    "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around"
    " you, you see a fridge 1, a shelf 2, and a shelf 1.\n\n"
    "Your task is to: put a hot mug in shelf."
)
STEPS = (
    ("go to fridge 1", "You arrive at fridge 1. The fridge 1 is closed."),
    ("open fridge 1", "You open the fridge 1. The fridge 1 is open. In it, you see a mug 1."),
    ("take mug 1 from fridge 1", "You pick up the mug 1 from the fridge 1."),
    ("go to microwave 1", "You arrive at microwave 1. The microwave 1 is closed."),
    ("heat mug 1 with microwave 1", "You heat the mug 1 using the microwave 1."),
)
COMMANDS = ("go to fridge 1", "go to shelf 1", "help", "look")


def episode(steps, commands=COMMANDS):
    """The episode after the first `steps` of STEPS."""
    texts = [OPENING, *(answer for _, answer in STEPS)]
    past = tuple((texts[i], STEPS[i][0]) for i in range(steps))
    return Episode(past, Observation(texts[steps], commands))


# ---------------------------------------------------------------------------------------- compact


def test_compact_first_turn():
    assert prompts.compact_prompt(episode(0), 2) == (
        "task: put a hot mug in shelf\nroom: fridge 1 shelf 2 shelf 1\nat the middle hold nothing"
    )


def test_compact_shows_the_last_answers_and_the_status():
    assert prompts.compact_prompt(episode(5), 2) == (
        "task: put a hot mug in shelf\n"
        "room: fridge 1 shelf 2 shelf 1\n"
        "go to microwave 1: closed\n"
        "heat mug 1 with microwave 1: ok\n"
        "at microwave 1 hold hot mug 1"
    )
    assert "open fridge 1: mug 1\n" in prompts.compact_prompt(episode(2), 1)
    assert "go to fridge 1" not in prompts.compact_prompt(episode(2), 1)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("You arrive at bed 1. On the bed 1, you see a book 2, and a pillow 1.", "book 2 pillow 1"),
        ("You arrive at bed 1. On the bed 1, you see nothing.", "nothing"),
        ("You arrive at safe 1. The safe 1 is open. In it, you see a cd 3.", "cd 3"),
        ("The drawer 5 is closed.", "closed"),
        ("You move the cd 3 to the safe 1.", "ok"),
        ("You turn on the desklamp 1.", "ok"),
        ("You close the safe 1.", "ok"),
        ("Nothing happens.", "nothing happens"),
        ("There's nothing special about cd 3.", "There's nothing special about cd 3."),
        ("This is a normal cup 2. In it, you see nothing.",) * 2,
        ("Available commands:\n  look:   look around", "Available commands:"),
    ],
)
def test_compact_words_for_observations(text, shown):
    assert prompts.describe(prompts.read_event(text)) == shown


def test_status_follows_the_states_of_the_held_item():
    """Heating undoes cooling and back; cleaning stays; a state outlives a put-down."""
    answers = [
        "You pick up the mug 1 from the desk 1.",
        "You cool the mug 1 using the fridge 1.",
        "You clean the mug 1 using the sinkbasin 1.",
        "You heat the mug 1 using the microwave 1.",
        "You move the mug 1 to the desk 1.",
        "You pick up the pen 1 from the desk 1.",
        "You move the pen 1 to the desk 1.",
        "You pick up the mug 1 from the desk 1.",
    ]
    texts = [OPENING, *answers]
    states = []
    for n in range(1, len(texts)):
        past = tuple((text, "x") for text in texts[:n])
        view = prompts.make_view(Episode(past, Observation(texts[n])), 2)
        states.append((view.holding, view.states))
    hot = ("clean", "hot")
    assert states == [
        *(("mug 1", ()), ("mug 1", ("cool",)), ("mug 1", ("clean", "cool")), ("mug 1", hot)),
        *(("", ()), ("pen 1", ()), ("", ()), ("mug 1", hot)),
    ]


def test_room_comes_from_the_commands_where_the_opening_hides_it():
    text = (
        "You are facing the shelf 1. Next to it, you see nothing.\n\nYour task is to: put a x in y."
    )
    commands = (
        "examine shelf 1",
        "go to bed 1",
        "go to shelf 10",
        "go to shelf 2",
        "examine mug 1",
    )
    view = prompts.make_view(Episode((), Observation(text, commands)), 2)
    assert view.room == ("bed 1", "shelf 10", "shelf 2", "shelf 1")


def records(path):
    with lzma.open(path, "rt") as lines:
        return [json.loads(line) for line in lines]


def test_recorded_engine_games_are_understood(data_dir):
    """On real transcripts every answer is read, and the status equals a replay of the actions."""
    for record in records(data_dir / "alfworld" / "engine_expert.jsonl.xz"):
        past, held = (), ""
        text = record["steps"][0]["obs"]
        for step in record["steps"][1:]:
            past = (*past, (text, step["action"]))
            text = step["obs"]
            words = step["action"].split()
            held = {"take": " ".join(words[1:3]), "move": ""}.get(words[0], held)
            view = prompts.make_view(Episode(past, Observation(text)), 2)
            assert view.recent[-1][1].kind != "other", text
            assert view.holding == held
            assert set(view.states) >= {"heat": {"hot"}, "cool": {"cool"}}.get(words[0], set())
            assert view.at in (view.room or view.at)


def test_missing_task_line_is_explained():
    with pytest.raises(ValueError, match="no 'Your task is to: '"):
        prompts.compact_prompt(Episode((), Observation("a blank page")), 2)


@pytest.mark.parametrize(
    ("response", "command", "valid"),
    [
        ("go to fridge 1", "go to fridge 1", True),
        (" go to  fridge 1\n", "go to fridge 1", True),
        ("<think>cold</think>go to fridge 1", "go to fridge 1", True),
        ("<think>a</think><think>b</think> look", "look", True),
        ("<think>go to fridge 1", "<think>go to fridge 1", False),
        ("help", "help", False),
        ("go to fridge 9", "go to fridge 9", False),
        ("", "", False),
        ("ab " * 40, ("ab " * 16).strip(), False),
    ],
)
def test_compact_projection(response, command, valid):
    assert prompts.compact_project(response, COMMANDS) == Projection(command, valid)


# ------------------------------------------------------------------------------------------ paper


def test_paper_first_turn_shows_observation_and_commands_without_help():
    text = prompts.paper_prompt(episode(0), 2)
    assert OPENING in text
    assert "['go to fridge 1'\n 'go to shelf 1'\n 'look']" in text
    assert "help" not in text
    assert "Observation 1" not in text


def test_paper_history_window_and_numbers():
    text = prompts.paper_prompt(episode(4), 2)
    entries = (
        "[Observation 3: 'You open the fridge 1. The fridge 1 is open. In it, you see a mug 1.',"
        " Action 3: 'take mug 1 from fridge 1']\n"
        "[Observation 4: 'You pick up the mug 1 from the fridge 1.', Action 4: 'go to microwave 1']"
    )
    assert entries in text
    assert "Observation 2:" not in text
    assert "Your task is to: put a hot mug in shelf.\n" in text
    assert "taken 4 step(s)" in text
    assert "latest 2 observation(s)" in text
    assert "This is step 5." in text
    assert text.count("You arrive at microwave 1. The microwave 1 is closed.") == 1
    assert OPENING not in text


def test_paper_window_grows_to_the_history_length():
    assert "[Observation 1: '-= Welcome" in prompts.paper_prompt(episode(1), 2)
    assert "latest 1 observation(s)" in prompts.paper_prompt(episode(1), 2)
    assert "latest 4 observation(s)" in prompts.paper_prompt(episode(4), 9)


def test_paper_without_history_is_the_first_turn_form():
    bare = Episode((), episode(3).current)
    assert prompts.paper_prompt(episode(3), 0) == prompts.paper_prompt(bare, 2)


@pytest.mark.parametrize(
    ("response", "command", "valid"),
    [
        ("<think>a</think><action>Go To Bed 1</action>", "go to bed 1", True),
        ("<think>a</think><action>\n look \n</action>", "look", True),
        ("<think>a</think><action>fly</action>", "fly", True),  # membership is not checked
        ("<think>a</think><action>x</action><action>y</action>", "x", True),
        ("<think>a</think><ACTION>x</ACTION>", "x", True),
        ("<THINK>a</THINK><action>x</action>", "x", False),
        ("<action>x</action>", "x", False),
        ("<think>a<action>x</action>", "x", False),
        ("<think>\u4e00</think><action>x</action>", "x", False),
        ("<think>\u9fff</think><action>x</action>", "x", False),
        ("<think>\ua000</think><action>x</action>", "x", True),
        ("<think>a</think>" + "Go To Bed 1 " * 4, ("go to bed 1 " * 4)[-30:], False),
        (
            "<think>a</think><action>go to the very last bed",
            "nk><action>go to the very last bed"[-30:],
            False,
        ),
        ("", "", False),
    ],
)
def test_paper_projection(response, command, valid):
    assert prompts.paper_project(response, ("look",)) == Projection(command, valid)


# ----------------------------------------------------------------------------------- both templates


@pytest.mark.parametrize("name", sorted(prompts.TEMPLATES))
@pytest.mark.parametrize("thought", ["", "the mug is cold"])
@pytest.mark.parametrize("command", ["go to fridge 1", "go to shelf 1", "look"])
def test_perfect_responses_are_valid(name, thought, command):
    template = prompts.TEMPLATES[name]
    response = template.respond(command, thought)
    assert thought in response
    assert template.project(response, COMMANDS) == Projection(command, True)


@pytest.mark.parametrize("name", sorted(prompts.TEMPLATES))
@given(response=st.text(max_size=80))
def test_any_response_is_read_without_error(name, response):
    projection = prompts.TEMPLATES[name].project(response, COMMANDS)
    limit = max(prompts.MAX_COMMAND_CHARS, len(response))
    assert len(projection.command) <= limit
