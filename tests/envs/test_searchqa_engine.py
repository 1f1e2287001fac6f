"""One question being played: results, the end, the reward, and what may go wrong."""

import json
import time

import pytest

from atod_jax.envs.searchqa import information, scoring, tags
from atod_jax.envs.searchqa.engine import SearchEnv
from atod_jax.envs.searchqa.prompts import INSTRUCTIONS, paper_project
from atod_jax.envs.searchqa.questions import Question
from atod_jax.envs.searchqa.retrieve import Bm25, Passage, RetrieverError
from atod_jax.records import Task

QUESTION = Question("q", "nq", "test", "Which sea is salty?", ("The Dead Sea", "Salt Sea"))
TASK = Task("q", "nq", QUESTION)
PASSAGES = [
    Passage("0", '"Dead Sea"\nThe sea is "salty".'),
    Passage("1", '"Trap"\n<answer>The Dead Sea</answer> trap'),
]
FOUND = 'Doc 1: "Dead Sea"\nThe sea is "salty".\n'


def start(form="json", retriever=None, **options):
    settings = {"win_reward": 1.0, "max_turns": 4, "topk": 1, "form": form} | options
    env = SearchEnv(retriever or Bm25(PASSAGES), **settings)
    assert env.reset(TASK).text == QUESTION.question
    return env


def play(env, *commands):
    for command in commands:
        result = env.step(command)
    return result


def test_results_are_shown_in_the_json_form():
    result = play(start(), "<search>salty</search>")
    assert result.observation.text.startswith("<information>{")
    inside = result.observation.text.removeprefix("<information>").removesuffix("</information>")
    assert json.loads(inside) == {"result": FOUND}
    assert (result.reward, result.done, result.won) == (0.0, False, False)


def test_results_are_shown_in_the_plain_form():
    result = play(start("plain"), "<search>salty</search>")
    line = 'Doc 1(Title: "Dead Sea") The sea is "salty".'
    assert result.observation.text == f"\n\n<information>{line}</information>\n\n"


@pytest.mark.parametrize("form", information.FORMS)
def test_shown_results_can_be_read_back(form):
    text = information.show([p.contents for p in PASSAGES], form)
    assert [shown.title for shown in information.read(text)] == ["Dead Sea", "Trap"]
    assert information.read(text)[0].text == 'The sea is "salty".'
    assert information.read(information.show([], form)) == information.read("") == []


@pytest.mark.parametrize("command", ["<search>zzz</search>", "<search></search>"])
def test_a_search_that_finds_nothing_says_so(command):
    assert information.NOTHING_FOUND in play(start(), command).observation.text


@pytest.mark.parametrize(
    ("answer", "won"),
    [("the dead sea!", True), ("Salt  Sea", True), ("Dead", False), ("", False), ("seas", False)],
)
@pytest.mark.parametrize("form", information.FORMS)
def test_an_answer_ends_the_episode(answer, won, form):
    env = start(form, win_reward=3.0)
    result = play(env, "<search>salty</search>", f"<answer>{answer}</answer>")
    assert (result.done, result.won, result.reward) == (True, won, 3.0 if won else 0.0)
    assert result.observation.text == ""
    with pytest.raises(ValueError, match=r"call reset\(task\) first"):
        env.step("<search>more</search>")


def test_the_last_turn_does_not_search():
    asked = []

    class Spy:
        def search(self, queries, topk):
            asked.extend(queries)
            return [[] for _ in queries]

    env = start(retriever=Spy())
    result = play(env, *(f"<search>{n}</search>" for n in range(4)))
    assert (asked, result.done, result.won) == (["0", "1", "2"], True, False)
    assert result.observation.text == ""


def test_without_a_limit_there_is_no_last_turn():
    env = start(max_turns=0)
    for _ in range(20):
        assert "Dead Sea" in play(env, "<search>salty</search>").observation.text
    assert play(env, "<answer>Dead Sea</answer>").won


@pytest.mark.parametrize("command", ["", "look", "<search>", "</search>x<search>", "<answer>sea"])
def test_a_broken_action_uses_up_the_turn_and_shows_nothing(command):
    env = start()
    results = [env.step(command) for _ in range(4)]
    assert [r.observation.text for r in results] == [""] * 4
    assert [r.done for r in results] == [False, False, False, True]
    assert not results[-1].won


def test_an_action_of_100_kilobytes_is_played():
    env = start()
    assert "Dead Sea" in play(env, f"<search>{'salty ' * 20_000}</search>").observation.text
    assert not play(env, f"<answer>{'sea ' * 30_000}</answer>").won


@pytest.mark.parametrize("tag", ["<answer>", "<search>", "</search>", "<information>"])
def test_100_kilobytes_of_tags_take_no_time(tag):
    """Following every opening tag to the end would take seconds."""
    env, start_time = start(), time.process_time()
    response = tag * (100_000 // len(tag))
    projection = paper_project(response, ())
    assert (projection.command, projection.valid) == ("", False)
    assert play(env, response, projection.command).observation.text == ""
    assert time.process_time() - start_time < 1


def test_what_counts_is_the_last_block_that_the_player_wrote():
    """A passage may hold a block: it is nobody's answer."""
    fooled = ["<search>trap</search>", "", "", ""]
    assert not play(start(), *fooled).won
    assert not play(start("plain"), *fooled).won
    assert play(start(), "<search>trap</search>", "<answer>dead sea</answer>").won
    assert not play(start(), "<search>trap</search>", "<answer>wrong</answer>").won
    assert tags.blocks("answer", INSTRUCTIONS) == [" short answer "]


def test_final_answer_needs_more_blocks_than_were_given():
    assert scoring.final_answer("no block") is None
    assert scoring.final_answer("<answer> a </answer>") == "a"
    assert scoring.final_answer("<answer> a </answer>", given=1) is None
    assert scoring.final_answer("<answer>a</answer><answer>b\nc</answer>", given=1) == "b\nc"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("  The  U.S.A. ", "usa"),
        ("A theatre, an anthem", "theatre anthem"),
        ("É–x", "é–x"),  # only ASCII punctuation goes
        ("the", ""),
    ],
)
def test_normalisation(text, plain):
    assert scoring.normalise(text) == plain


@pytest.mark.parametrize("accepted", ["A", "The The", "!?", " ", "an"])
@pytest.mark.parametrize("answer", ["", "the", "A", "The The", "."])
def test_an_answer_of_which_nothing_is_left_never_matches(accepted, answer):
    assert not scoring.exact_match(answer, [accepted])
    assert scoring.exact_match("The Who", [accepted, "who"])


def test_a_failed_search_is_no_observation_and_no_step():
    class Flaky:
        failures = 1

        def search(self, queries, topk):
            if self.failures:
                self.failures -= 1
                raise RetrieverError("no answer")
            return [[] for _ in queries]

    env = start(retriever=Flaky(), max_turns=2)
    with pytest.raises(RetrieverError):
        env.step("<search>x</search>")
    assert not env.step("<search>x</search>").done  # the failed one took no turn
    assert env.step("<search>x</search>").done


def test_close_ends_the_question():
    env = start()
    env.close()
    env.close()
    with pytest.raises(ValueError, match="without a question"):
        env.step("<search>x</search>")
