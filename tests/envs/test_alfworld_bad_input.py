"""Bad input to the household environment: refused with a clear message, or harmless."""

import gzip
import time

import pytest

from atod_jax.envs import alfworld
from atod_jax.envs.alfworld.engine import NOTHING_HAPPENS
from atod_jax.envs.base import Episode

CFG = alfworld.Config()
HUGE = "go to bed 1 " * 8400  # 100 kB


@pytest.fixture(scope="module")
def task():
    return alfworld.tasks(CFG, "train")[0]


def test_an_unknown_split_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="split 'test' is unknown; use one of train, valid_seen"):
        alfworld.tasks(CFG, "test")


@pytest.mark.parametrize(
    ("suffix", "opener"), [("", open), (".gz", gzip.open)], ids=["plain", "packed"]
)
def test_a_games_file_that_is_not_utf8_is_named(tmp_path, suffix, opener):
    path = tmp_path / f"games.jsonl{suffix}"
    with opener(path, "wb") as file:
        file.write(b'{"id": "caf\xe9"}\n')
    with pytest.raises(ValueError, match=r"games\.jsonl.*: damaged or cut off after line 0 .*utf"):
        alfworld.tasks(alfworld.Config(games=str(path)), "train")


def test_a_path_to_nothing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no games file at .*json_2\.1\.1"):
        alfworld.tasks(alfworld.Config(games=str(tmp_path / "json_2.1.1")), "train")


BROKEN = [
    "<think>x</think><action>look",
    "<think>x</think>look</action>",
    "<think>x<action>look</action>",
    "<think>x</think><act>look</act>",
    "<action></action>",
    "",
    "\x00\u202e\ud7ff",
]


@pytest.mark.parametrize("response", BROKEN)
@pytest.mark.parametrize("template", alfworld.ENVIRONMENT.templates)
def test_broken_tags_cost_a_turn_and_change_nothing(task, template, response):
    env = alfworld.make(CFG)
    shown = env.reset(task)
    action = alfworld.ENVIRONMENT.templates[template].project(response, shown.commands)
    result = env.step(action.command)
    assert not action.valid
    assert (result.reward, result.done, result.won) == (0.0, False, False)
    assert result.observation.commands == shown.commands


def test_tags_in_the_wrong_order_hold_no_action(task):
    """The paper template looks for both tags, not for their order: the command is empty."""
    env = alfworld.make(CFG)
    env.reset(task)
    action = alfworld.ENVIRONMENT.templates["paper"].project(
        "<think></think></action>look<action>", ()
    )
    assert (action.command, action.valid) == ("", True)
    assert env.step(action.command).observation.text == NOTHING_HAPPENS


@pytest.mark.parametrize("template", alfworld.ENVIRONMENT.templates)
def test_an_action_of_100_kb_is_answered_at_once(task, template):
    prompt, project, respond, *_ = alfworld.ENVIRONMENT.templates[template]
    env, start = alfworld.make(CFG), time.process_time()
    shown = env.reset(task)
    action = project(respond(HUGE, HUGE), shown.commands)
    result = env.step(action.command)
    assert env.step(HUGE).observation.text == result.observation.text == NOTHING_HAPPENS
    prompt(Episode(((shown.text, action.command),), result.observation), 2)
    assert time.process_time() - start < 1.0


def test_a_garbled_action_hardly_lengthens_the_terse_prompt(task):
    shown = alfworld.make(CFG).reset(task)
    prompt, project, *_ = alfworld.ENVIRONMENT.templates["compact"]
    action = project(HUGE, shown.commands)
    before = prompt(Episode((), shown), 2)
    assert len(prompt(Episode(((shown.text, action.command),), shown), 2)) < len(before) + 200
