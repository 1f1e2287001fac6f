"""Official folders in TextWorld itself: it, the native engine and the recordings agree.

Needs the extra `alfworld`; TextWorld takes seconds per game, so a handful of short ones is played.
"""

import importlib.util
import threading
from pathlib import Path

import pytest
from official_folders import records, write_trial

from atod_jax.envs import alfworld
from atod_jax.envs.alfworld.game import TASK_TYPES
from atod_jax.records import Task

HAS_TEXTWORLD = all(importlib.util.find_spec(name) for name in ("textworld", "alfworld"))
needs_textworld = pytest.mark.skipif(
    not HAS_TEXTWORLD, reason="TextWorld is not installed: pip install alfworld==0.4.2"
)


# --------------------------------------------------------------------------- with TextWorld itself


@pytest.fixture(scope="module")
def expert(data_dir) -> dict[str, dict]:
    return {r["id"]: r for r in records(data_dir / "alfworld" / "engine_expert.jsonl.xz")}


@pytest.fixture(scope="module")
def make_task(tmp_path_factory):
    """Writes the official folder of a recorded game; returns its task."""
    import alfworld as package

    logic = Path(package.__file__).parent / "data"
    texts = {
        "domain": (logic / "alfred.pddl").read_text(),
        "grammar": (logic / "alfred.twl2").read_text(),
    }

    def write(record: dict) -> Task:
        root = tmp_path_factory.mktemp("official")
        write_trial(root, record, **texts)
        return alfworld.tasks(alfworld.Config(games=str(root)), record["split"])[0]

    return write


def _transcript(engine: str, task: Task, actions: list[str]) -> list[tuple]:
    """(text, commands, reward, done, won) after the reset and after every action."""
    env = alfworld.make(alfworld.Config(engine=engine))
    shown = env.reset(task)
    found = [(shown.text, list(shown.commands), 0.0, False, False)]
    for action in actions:
        r = env.step(action)
        found.append((r.observation.text, list(r.observation.commands), r.reward, r.done, r.won))
    with pytest.raises(ValueError, match="without a running game"):
        (env if found[-1][3] else alfworld.make(alfworld.Config(engine=engine))).step("look")
    env.close()
    return found


def _recorded(steps: list[dict]) -> list[tuple]:
    return [
        (s["obs"], s["admissible"], 10.0 * s["won"], s.get("done", False), s["won"]) for s in steps
    ]


def _cheap(record: dict) -> int:
    """TextWorld's work grows with the facts of a problem."""
    return len(record["pddl_problem"]) * len(record["steps"])


@needs_textworld
@pytest.mark.textworld
@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_both_engines_repeat_a_recorded_game_of_each_type(expert, make_task, task_type):
    of_type = [r for r in expert.values() if r["task_type"] == task_type]
    record = min(of_type, key=_cheap)
    task = make_task(record)
    actions = [step["action"] for step in record["steps"][1:]]
    played = _transcript("textworld", task, actions)
    assert played == _transcript("native", task, actions) == _recorded(record["steps"])
    assert played[-1][-1]


@needs_textworld
@pytest.mark.textworld
def test_both_engines_repeat_a_recorded_walk(data_dir, expert, make_task):
    walks = records(data_dir / "alfworld" / "engine_walks.jsonl.xz")
    walk = min(walks, key=lambda w: _cheap(expert[w["game"]] | {"steps": w["steps"]}))
    task = make_task(expert[walk["game"]])
    actions = [step["action"] for step in walk["steps"][1:]]
    played = _transcript("textworld", task, actions)
    assert played == _transcript("native", task, actions) == _recorded(walk["steps"])


@needs_textworld
@pytest.mark.textworld
def test_a_grammar_without_goal_shows_the_goal_of_the_native_engine(expert, make_task):
    task = make_task(min(expert.values(), key=_cheap) | {"goal": "UNKNOWN GOAL"})
    opening = alfworld.make(alfworld.Config(engine="textworld")).reset(task).text
    assert "UNKNOWN GOAL" not in opening
    assert opening == alfworld.make(alfworld.Config()).reset(task).text


@needs_textworld
@pytest.mark.textworld
def test_games_in_threads_wait_for_each_other(expert, make_task):
    record = min(expert.values(), key=_cheap)
    task, found = make_task(record), []
    actions = [step["action"] for step in record["steps"][1:3]]

    def play():
        found.append(_transcript("textworld", task, actions))

    threads = [threading.Thread(target=play) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [_recorded(record["steps"][:3])] * 2


@needs_textworld
@pytest.mark.textworld
def test_a_task_that_is_no_official_game_is_refused():
    task = alfworld.tasks(alfworld.Config(), "train")[0]
    with pytest.raises(ValueError, match=r"'.+' is no game\.tw-pddl file"):
        alfworld.make(alfworld.Config(engine="textworld")).reset(task)


# ------------------------------------------------------------------------------------- without it


@pytest.mark.skipif(HAS_TEXTWORLD, reason="TextWorld is installed")
def test_the_missing_package_is_named_with_its_install_command():
    with pytest.raises(ValueError, match=r"engine='textworld' cannot start .*pip install alfworld"):
        alfworld.make(alfworld.Config(engine="textworld"))


@pytest.mark.parametrize("games", ["", "some/games.jsonl"])
def test_textworld_plays_official_folders_only(games):
    with pytest.raises(
        ValueError, match=r"env\.alfworld\.games='.*': it plays the game\.tw-pddl files"
    ):
        alfworld.tasks(alfworld.Config(games=games, engine="textworld"), "train")
