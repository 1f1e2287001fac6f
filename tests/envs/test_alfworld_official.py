"""The official data folders, written here from recorded problems: listed, played, refused."""

import pickle
import shutil

import pytest
from official_folders import records, write_trial

from atod_jax.envs import alfworld
from atod_jax.envs.alfworld import official
from atod_jax.envs.alfworld.expert import parse_goal
from atod_jax.envs.alfworld.game import TASK_TYPES
from atod_jax.records import Task

SPLITS = ("train", "valid_seen", "valid_unseen")


@pytest.fixture(scope="module")
def expert(data_dir):
    return records(data_dir / "alfworld" / "engine_expert.jsonl.xz")


@pytest.fixture(scope="module")
def release(expert, tmp_path_factory):
    """A data folder with every recorded game."""
    root = tmp_path_factory.mktemp("alfworld_data")
    for record in expert:
        write_trial(root, record)
    return root


@pytest.fixture(scope="module")
def tasks(release) -> dict[str, Task]:
    cfg = alfworld.Config(games=str(release))
    return {task.id: task for split in SPLITS for task in alfworld.tasks(cfg, split)}


def _differences(task: Task, steps: list[dict]) -> list[str]:
    env, found = alfworld.make(alfworld.Config()), []
    shown, won = env.reset(task), False
    for number, step in enumerate(steps):
        if number:
            result = env.step(step["action"])
            shown, won = result.observation, result.won
        if (shown.text, list(shown.commands), won) != (
            step["obs"],
            step["admissible"],
            step["won"],
        ):
            found.append(f"{task.id} step {number} {step.get('action')!r}: {shown.text!r}")
    return found


def test_every_recorded_game_is_listed(expert, release, tasks):
    assert {t.id: t.kind for t in tasks.values()} == {r["id"]: r["task_type"] for r in expert}
    inner = alfworld.Config(games=str(release / "json_2.1.1"))
    assert list(alfworld.tasks(inner, "train")) == [
        task for task in tasks.values() if task.payload.split == "train"
    ]


def test_the_first_games_are_a_fair_sample(record, tmp_path):
    """In path order the first half would hold three task types."""
    for number in range(60):
        kind = TASK_TYPES[number % 6]
        identity = {"split": "train", "id": f"{kind}-Pen-None-Desk-{number}/trial_1"}
        write_trial(tmp_path, record | identity | {"task_type": kind})
    tasks = alfworld.tasks(alfworld.Config(games=str(tmp_path)), "train")
    assert {task.kind for task in tasks[:30]} == set(TASK_TYPES)


def test_every_recorded_step_is_replayed(expert, tasks):
    differences = [d for r in expert for d in _differences(tasks[r["id"]], r["steps"])]
    assert differences == []


def test_every_recorded_walk_is_replayed(data_dir, tasks):
    walks = records(data_dir / "alfworld" / "engine_walks.jsonl.xz")
    assert walks
    assert [d for w in walks for d in _differences(tasks[w["game"]], w["steps"])] == []


def test_walkthroughs_are_the_demonstrations(expert, tasks):
    cfg = alfworld.Config()
    for record in expert:
        commands = alfworld.demonstration(cfg, tasks[record["id"]], 100)
        assert commands == tuple(record["walkthrough"])


def test_a_task_sent_to_a_worker_is_small(tasks):
    assert max(len(pickle.dumps(task)) for task in tasks.values()) < 1000


def test_a_grammar_without_goal_gets_a_templated_one(expert, tmp_path):
    for record in expert:
        path = write_trial(tmp_path, record | {"goal": official.NO_GOAL})
        game = official.read_trial(official.Trial(str(path), record["split"]))
        assert parse_goal(game.goal) == parse_goal(record["goal"]), record["id"]


# ------------------------------------------------------------------------------- what is left out


@pytest.fixture
def record(expert) -> dict:
    return expert[0]


def _tasks(root, split):
    return alfworld.tasks(alfworld.Config(games=str(root)), split)


def test_games_the_official_loader_skips_are_skipped(expert, tmp_path):
    kept, unsolvable, unchecked, sliced, movable, bare = expert[:6]
    split = {"split": "train"}
    write_trial(tmp_path, kept | split)
    write_trial(tmp_path, unsolvable | split, {"solvable": False})
    write_trial(tmp_path, unchecked | split, {"solvable": None})
    kind, rest = sliced["id"].split("-", 1)
    write_trial(tmp_path, sliced | split | {"id": f"{kind}-AppleSliced-{rest}"})
    write_trial(tmp_path, movable | split | {"id": "pick_and_place_with_movable_recep-A-B/trial_1"})
    write_trial(tmp_path, bare | split).unlink()
    assert [task.id for task in _tasks(tmp_path, "train")] == [kept["id"]]


def test_a_split_without_a_game_says_why(record, tmp_path):
    path = write_trial(tmp_path, record)
    path.unlink()
    folder = rf"json_2\.1\.1.{record['split']}"
    with pytest.raises(ValueError, match=rf"{folder}: no playable game \(1 without a game\.tw-pd"):
        _tasks(tmp_path, record["split"])
    shutil.rmtree(path.parents[1])
    with pytest.raises(ValueError, match=rf"{folder}: no playable game \(it is empty\)"):
        _tasks(tmp_path, record["split"])
    path.parents[2].rmdir()
    with pytest.raises(FileNotFoundError, match=rf"no folder .*{folder}.*alfworld-download"):
        _tasks(tmp_path, record["split"])


def test_a_truncated_game_file_is_named(record, tmp_path):
    path = write_trial(tmp_path, record)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"trial_\w+.game\.tw-pddl: damaged or cut off"):
        _tasks(tmp_path, record["split"])


def test_a_game_file_that_is_no_object_is_named(record, tmp_path):
    write_trial(tmp_path, record).write_text("[]")
    with pytest.raises(ValueError, match=r"game\.tw-pddl: expected a JSON object, found list"):
        _tasks(tmp_path, record["split"])


@pytest.mark.parametrize("entry", ["pddl_domain", "grammar", "pddl_problem"])
def test_a_missing_entry_is_named(record, tmp_path, entry):
    write_trial(tmp_path, record, {entry: None})
    with pytest.raises(ValueError, match=rf"game\.tw-pddl: entry '{entry}' is missing"):
        _tasks(tmp_path, record["split"])


def test_a_file_that_is_gone_when_it_is_played_is_named(record, tmp_path):
    path = write_trial(tmp_path, record)
    (task,) = _tasks(tmp_path, record["split"])
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no game file at .*game\.tw-pddl"):
        alfworld.make(alfworld.Config()).reset(task)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pddl_problem": "(define"}, "PDDL problem .*never closed"),
        ({"grammar": "{}"}, "the grammar has no line 'Your task is to"),
    ],
)
def test_a_damaged_problem_is_named_with_its_file(record, tmp_path, changes, message):
    """When its split is listed, so before anything is played."""
    write_trial(tmp_path, record, changes)
    with pytest.raises(ValueError, match=rf"game\.tw-pddl: .*{message}"):
        _tasks(tmp_path, record["split"])
