"""Where a response is searched for an action: behind the thinking, or anywhere."""

import pytest

from atod_jax.envs import alfworld, searchqa, webshop
from atod_jax.envs.base import Projection
from atod_jax.envs.tagged import without_quotes
from atod_jax.envs.templates import template_of

QUOTED = "<think>I might <action>look</action></think>\n<action>go to desk 1</action>"
HOUSE, SHOP, QUESTIONS = (e.ENVIRONMENT for e in (alfworld, webshop, searchqa))


def project(environment, name, response, actions="answer", commands=("look", "go to desk 1")):
    return template_of(environment, name, actions=actions).project(response, commands)


@pytest.mark.parametrize(
    ("response", "answer", "anywhere"),
    [
        (QUOTED, ("go to desk 1", True), ("look", True)),
        ("<think>so</think><action>look</action>", ("look", True), ("look", True)),
        # a second thought: what counts follows the last closing tag
        (
            "<think>a</think><action>look</action>no</think><action>go to desk 1</action>",
            ("go to desk 1", True), ("look", True),
        ),
        ("<action>look</action>", ("look", False), ("look", False)),
    ],
)  # fmt: skip
def test_an_action_is_what_follows_the_thinking(response, answer, anywhere):
    assert project(HOUSE, "paper", response) == Projection(*answer)
    assert project(HOUSE, "paper", response, "anywhere") == Projection(*anywhere)


@pytest.mark.parametrize(
    "response",
    ["<think>I might <action>look</action>", "<think>a <action>look</action></think> Right."],
)
def test_an_action_that_is_only_quoted_is_none(response):
    got = project(HOUSE, "paper", response)
    assert not got.valid
    assert got.command != "look"
    assert "<action>" not in got.command
    assert project(HOUSE, "paper", response, "anywhere").command == "look"


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("<think>a</think></action>look<action>", "action tags in the wrong order"),
        ("<think>a</think></action> <action>look</action>", "action tags in the wrong order"),
        ("<think>a</think>look</action>", "no action tags"),
        ("</think><action>look</action><think>", "no thinking tags"),
        ("</think>a<think><action>look</action>", "no action tags"),
        ("<action>look</action><think>a</think>", "no action tags"),
        ("<THINK><action>look</action></THINK>", "no action tags"),
    ],
)
def test_tags_in_the_wrong_order_are_no_action(response, reason):
    for environment in (HOUSE, SHOP):
        got = project(environment, "paper", response)
        assert (got.valid, got.reason) == (False, reason)


@pytest.mark.parametrize(
    "response",
    ["</search>x<search>", "<think><search>x</search></think>", "<search>x</search></think>",
     "<think><search>x</search>", "<THINK><search>x</search></Think>", "</answer>x<answer>"],
)  # fmt: skip
def test_a_search_in_the_wrong_place_is_none(response):
    assert project(QUESTIONS, "paper", response) == Projection("", False)


@pytest.mark.parametrize("kind", ["action", "search", "answer"])
def test_a_hostile_action_is_bounded(kind):
    response = f"<think>a</think><{kind}>{'look ' * 40_000}</{kind}>"
    environments = (HOUSE, SHOP) if kind == "action" else (QUESTIONS,)
    for environment in environments:
        for name in environment.templates:
            assert len(project(environment, name, response).command) <= 1000 + 2 * len("<search>")


def test_searches_and_clicks_are_read_alike():
    response = "<think><search>x</search>?</think><answer>y</answer>"
    assert project(QUESTIONS, "paper", response) == Projection("<answer>y</answer>", True)
    got = project(QUESTIONS, "paper", response, "anywhere")
    assert got == Projection("<search>x</search>", False)
    assert got.problem == "several searches or answers"
    response = "<think><action>search[a]</action>?</think><action>click[b]</action>"
    assert project(SHOP, "paper", response) == Projection("click[b]", True)


def test_the_thinking_stays_in_sight_of_the_other_rules():
    """Its tags count, and the language of the whole response does."""
    response = "<think>中</think><action>look</action>"
    got = project(HOUSE, "paper", response)
    assert (got, got.problem) == (Projection("look", False), "Chinese characters")
    for plain in ("", "look", "<action>look</action>", "<think>so</think>look"):
        assert without_quotes(plain) == plain


@pytest.mark.parametrize(
    ("template", "response", "reason"),
    [
        ("paper", "<think>so</think>look", "no action tags"),
        ("paper", "<think>so <action>look</action>", "thinking never closed"),
        ("paper", "<action>look</action>", "no thinking tags"),
        ("paper", QUOTED, ""),
        ("compact", "help", "not admissible"),
        ("compact", "<think>so</think>look", ""),
    ],
)
def test_what_makes_a_response_invalid_has_a_name(template, response, reason):
    assert project(HOUSE, template, response).reason == reason
    assert Projection("look", False).reason == "invalid"
