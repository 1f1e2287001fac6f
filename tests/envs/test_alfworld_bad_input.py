"""Bad input to the household environment: refused with a clear message, or harmless."""

import functools
import gzip
import json
import operator
import time

import pytest

from atod_jax.envs import alfworld
from atod_jax.envs.alfworld import prepare
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


def game():
    """A whole game as files hold it."""
    return {
        "id": "g", "split": "train", "task_type": "pick_and_place_simple", "goal": "put mug in bed",
        "pddl_params": {"object_target": "Mug", "parent_target": "Bed", "toggle_target": ""},
        "candidate_plan": ["look"], "agent_start": "here",
        "receptacles": [{"name": "bed 1", "type": "Bed", "openable": False, "loc": "there"}],
        "objects": [{"name": "mug 1", "type": "Mug", "in": "bed 1"}],
    }  # fmt: skip


def with_entry(path, value):
    """The game with another value at a path such as "objects.0.in"."""
    changed = game()
    *folders, last = (int(key) if key.isdecimal() else key for key in path.split("."))
    functools.reduce(operator.getitem, folders, changed)[last] = value
    return changed


def written(path, *records, mark=b""):
    path.write_bytes(mark + b"\n \n\r\n".join(json.dumps(r).encode() for r in records))
    return alfworld.Config(games=str(path))


def test_a_mark_blank_lines_and_half_a_pair_are_no_damage(tmp_path):
    odd = game() | {"id": "half \ud83d", "goal": "put mug\nin bed"}
    cfg = written(tmp_path / "games.jsonl", game(), odd, mark=b"\xef\xbb\xbf")
    found = {task.id: task for task in alfworld.tasks(cfg, "train")}
    assert set(found) == {"g", "half \ufffd"}
    assert alfworld.make(cfg).reset(found["half \ufffd"]).text.endswith("put mug in bed.")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("id", " ", "the id is empty"),
        ("id", 5, r"field 'id' is int \(5\); expected text"),
        ("split", "dev", "split='dev': use one of train"),
        ("goal", None, "field 'goal' is NoneType"),
        ("pddl_params", [], r"pddl_params=\[\]: expected an object"),
        ("pddl_params.object_target", "Cup", "object_target='Cup': nothing in the game is of"),
        ("pddl_params.parent_target", "", "parent_target='': nothing in the game is of this type"),
        ("candidate_plan", "look", "candidate_plan='look': expected a list of texts"),
        ("receptacles", {}, "receptacles={}: expected a list of objects"),
        ("receptacles.0.openable", "no", "openable='no': expected true or false"),
        ("receptacles.0.name", "Bed", "'Bed' is no name such as 'mug 1'"),
        ("objects.0.name", "bed 1", "'bed 1' is no unique name"),
        ("objects.0.in", "shelf 1", "inside 'shelf 1', which is no receptacle"),
        ("objects", [None], r"objects=\[None\]: expected a list of objects"),
    ],
)
def test_a_game_that_cannot_be_played_is_refused_when_it_is_read(tmp_path, path, value, message):
    cfg = written(tmp_path / "games.jsonl", game(), with_entry(path, value))
    with pytest.raises(ValueError, match=f"games.jsonl, line 4: not a game: .*{message}"):
        alfworld.tasks(cfg, "train")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[" * 99_999, "line 1: nested too deeply"),
        ('{"id": ' + "9" * 9999 + "}", "line 1: not JSON"),
        ("[]", "line 1: not a game: expected an object, found list"),
        ("{}", "line 1: not a game: field 'pddl_params' is missing"),
    ],
)
def test_lines_that_hold_no_game_are_named(tmp_path, line, message):
    path = tmp_path / "games.jsonl"
    path.write_text(line)
    with pytest.raises(ValueError, match=message):
        alfworld.tasks(alfworld.Config(games=str(path)), "train")


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json", "*array_record*"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[1", b"\xff" * 99])
def test_a_damaged_data_set_is_named(tmp_path, file, content):
    written(tmp_path / "games.jsonl", game())
    folder = prepare.prepare(tmp_path / "games.jsonl", tmp_path)
    cfg = alfworld.Config(games=str(folder))
    assert [task.id for task in alfworld.tasks(cfg, "train")] == ["g"]
    alfworld._file_tasks.cache_clear()
    (path,) = folder.glob(file)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{folder}") as caught:
        alfworld.tasks(cfg, "train")
    assert "\n" not in str(caught.value)


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
    """They are invalid, and what is sent does nothing."""
    env = alfworld.make(CFG)
    env.reset(task)
    action = alfworld.ENVIRONMENT.templates["paper"].project(
        "<think></think></action>look<action>", ()
    )
    assert (action.valid, action.reason) == (False, "action tags in the wrong order")
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
