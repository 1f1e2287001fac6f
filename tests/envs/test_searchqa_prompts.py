"""What a model is shown in a search episode, and which command its answer becomes."""

import pytest

from atod_jax.envs.base import Episode, Observation
from atod_jax.envs.searchqa import information
from atod_jax.envs.searchqa.prompts import (
    INSTRUCTIONS,
    MAX_QUERY_CHARS,
    ROLE,
    TEMPLATES,
    compact_project,
    compact_prompt,
    paper_project,
    paper_prompt,
)

RESULT = information.show(['"Dead Sea"\nThe Dead Sea is salty.', '"Salt"\nA mineral.'], "json")
FIRST = Episode((), Observation("Which sea?"))
LATER = Episode(
    (("Which sea?", "<search>salt</search>"), (RESULT, "<search>sea</search>"), ("", "")),
    Observation(RESULT),
)


def test_the_first_prompt_is_role_question_and_instructions():
    prompt = paper_prompt(FIRST, 4)
    assert prompt == f"{ROLE}\nYour question: Which sea?\n{INSTRUCTIONS}"
    for tag in ("<think> </think>", "<search> query </search>", "<answer> short answer </answer>"):
        assert tag in prompt


def test_later_prompts_hold_every_step_with_its_result():
    prompt = paper_prompt(LATER, 4)
    entries = (
        f"Step 1:<search>salt</search> {RESULT}\n\nStep 2:<search>sea</search> \n\n"
        f"Step 3: {RESULT}\n"
    )
    assert entries in prompt
    assert prompt.startswith(f"{ROLE}\nYour question: Which sea?\nYou have taken 3 step(s)")
    assert prompt.endswith(INSTRUCTIONS)


def test_only_the_latest_steps_are_shown_with_their_own_numbers():
    prompt = paper_prompt(LATER, 2)
    assert "Step 1" not in prompt
    assert "Step 2:<search>sea</search>" in prompt
    assert paper_prompt(LATER, 0) == paper_prompt(FIRST, 4)


@pytest.mark.parametrize(
    ("response", "command", "valid"),
    [
        ("<think>x</think><search> a b </search>", "<search>a b</search>", True),
        ("<answer>Dead\nSea</answer>", "<answer>Dead\nSea</answer>", True),
        ("<SEARCH>x</Search>", "<search>x</search>", True),
        ("<search></search>", "<search></search>", True),
        ("<search>a</search> text", "<search>a</search>", True),
        # both kinds, or one of them twice: played, but invalid
        ("<search>a</search><answer>b</answer>", "<search>a</search>", False),
        ("<answer>b</answer><search>a</search>", "<search>a</search>", False),
        ("<search>a</search><search>b</search>", "<search>a</search>", False),
        ("<answer>a</answer><answer>b</answer>", "<answer>a</answer>", False),
        ("<search>a <answer>b</answer>", "<answer>b</answer>", False),
        ("<search>a<search>b</search>", "<search>a<search>b</search>", False),
        # nothing whole
        ("", "", False),
        ("look around", "", False),
        ("<search>a", "", False),
        ("a</search>", "", False),
        ("<answer>a</search>b</answer>", "", False),  # cut after the first closing tag
    ],
)
def test_projection(response, command, valid):
    projection = paper_project(response, ())
    assert (projection.command, projection.valid) == (command, valid)


def test_the_compact_prompt_is_terse_and_complete():
    found = "\n- Dead Sea: The Dead Sea is salty.\n- Salt: A mineral."
    prompt = f"question: Which sea?\nsearch salt{found}\nsearch sea\nnothing{found}"
    assert compact_prompt(LATER, 4) == prompt


@pytest.mark.parametrize(
    ("response", "command"),
    [
        ("search dead sea", "<search>dead sea</search>"),
        ("<think>so</think>answer  Dead Sea ", "<answer>Dead Sea</answer>"),
        ("search " + "y" * 900, f"<search>{'y' * MAX_QUERY_CHARS}</search>"),
        ("search", ""),
        ("look up", ""),
        ("search </search>", ""),
        ("", ""),
    ],
)
def test_compact_projection(response, command):
    projection = compact_project(response, ())
    assert (projection.command, projection.valid) == (command, bool(command))


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("thought", ["", "look for it"])
@pytest.mark.parametrize("command", ["<search>dead sea</search>", "<answer>Dead Sea</answer>"])
def test_an_ideal_response_is_read_back(name, thought, command):
    template = TEMPLATES[name]
    projection = template.project(template.respond(command, thought), ())
    assert (projection.command, projection.valid) == (command, True)
