"""Real game files: every plan wins; damaged files and PDDL problems are refused by name."""

import dataclasses
import gzip
import json
import lzma
from collections import Counter

import pytest

from atod_jax.envs import alfworld
from atod_jax.envs.alfworld.engine import NOTHING_HAPPENS, Engine
from atod_jax.envs.alfworld.game import TASK_TYPES, Game, Item, Receptacle
from atod_jax.envs.alfworld.games import read_games
from atod_jax.envs.alfworld.pddl import name_entities, read_expression, read_problem


@pytest.fixture(scope="module")
def games_file(data_dir):
    return data_dir / "alfworld" / "games.jsonl.xz"


@pytest.fixture(scope="module")
def games(games_file) -> list[Game]:
    return read_games(games_file)


def _outcome(game: Game) -> str:
    """ "won", or why the game's own plan does not win."""
    engine = Engine(game)
    for command in game.plan or ():
        if engine.step(command)[0] == NOTHING_HAPPENS:
            return f"{command!r} is not admissible"
    return "won" if engine.won else "the goal is not reached"


def test_every_plan_wins(games):
    outcomes = {game.id: _outcome(game) for game in games if game.plan is not None}
    assert {id: what for id, what in outcomes.items() if what != "won"} == {}
    assert {game.task_type for game in games if game.id in outcomes} == set(TASK_TYPES)


def test_no_game_is_won_at_the_start(games):
    assert [game.id for game in games if game.plan and Engine(game).won] == []


def test_plans_recorded_as_won_in_textworld_agree(games_file, games):
    with lzma.open(games_file, "rt", encoding="utf-8") as lines:
        verified = {r["id"]: r["verified"] for r in map(json.loads, lines)}
    won = [game for game in games if verified[game.id] == "won in TextWorld"]
    assert won
    assert {_outcome(game) for game in won} == {"won"}


def test_splits_partition_the_file(games_file, games):
    counts = Counter(game.split for game in games)
    assert set(counts) == {"train", "valid_seen", "valid_unseen"}
    for split, count in counts.items():
        assert len(read_games(games_file, split)) == count


def test_games_without_plan_are_kept_unless_told_otherwise(games_file, games):
    planned = read_games(games_file, planned_only=True)
    assert [g.id for g in planned] == [g.id for g in games if g.plan is not None]
    assert 0 < len(planned) < len(games)


# ----------------------------------------------------------------------------------- damaged files


RECORD = {
    "id": "pick_and_place_simple-Pen-None-Desk-301/trial_1",
    "split": "train",
    "task_type": "pick_and_place_simple",
    "goal": "put a pen in desk",
    "pddl_params": {"object_target": "Pen", "parent_target": "Desk", "toggle_target": ""},
    "agent_start": "loc|0",
    "receptacles": [
        {"name": "bed 1", "type": "Bed", "openable": False, "loc": "loc|1"},
        {"name": "desk 1", "type": "Desk", "openable": False, "loc": "loc|2"},
    ],
    "objects": [{"name": "pen 1", "type": "Pen", "in": "bed 1"}],
    "candidate_plan": [
        "go to bed 1",
        "take pen 1 from bed 1",
        "go to desk 1",
        "move pen 1 to desk 1",
    ],
}


@pytest.mark.parametrize(("suffix", "opener"), [("", open), (".xz", lzma.open), (".gz", gzip.open)])
def test_plain_and_packed_files_read_alike(tmp_path, suffix, opener):
    path = tmp_path / f"games.jsonl{suffix}"
    with opener(path, "wt", encoding="utf-8") as lines:
        lines.write(json.dumps(RECORD) + "\n")
    (game,) = read_games(path)
    assert game.items == (Item("pen 1", "Pen", "bed 1"),)
    assert game.receptacles[1] == Receptacle("desk 1", "Desk", False, "loc|2")
    assert _outcome(game) == "won"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no games file at .*nowhere\.jsonl"):
        read_games(tmp_path / "nowhere.jsonl")


def test_a_line_that_is_not_json_is_named(tmp_path):
    path = tmp_path / "games.jsonl"
    path.write_text(json.dumps(RECORD) + "\n{\n")
    with pytest.raises(ValueError, match=r"games\.jsonl, line 2: not JSON"):
        read_games(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"agent_start": None}, "line 1: not a game: field 'agent_start' is missing"),
        ({"task_type": "juggle"}, "line 1: not a game: task_type 'juggle' is none of"),
        (
            {"objects": [{"name": "pen 1", "type": "Pen"}]},
            "line 1: not a game: field 'in' is missing",
        ),
    ],
)
def test_a_line_that_is_no_game_is_named(tmp_path, change, message):
    record = {key: value for key, value in (RECORD | change).items() if value is not None}
    path = tmp_path / "games.jsonl"
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(ValueError, match=message):
        read_games(path)


@pytest.mark.parametrize(("suffix", "opener"), [(".xz", lzma.open), (".gz", gzip.open)])
def test_a_file_that_is_cut_off_is_named(tmp_path, suffix, opener):
    path = tmp_path / f"games.jsonl{suffix}"
    with opener(path, "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps(RECORD | {"id": str(n)}) + "\n" for n in range(100))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"games\.jsonl\.\w+: damaged or cut off after line \d+"):
        read_games(path)


@pytest.mark.parametrize("suffix", [".xz", ".gz"])
def test_a_file_that_is_not_packed_at_all_is_named(tmp_path, suffix):
    path = tmp_path / f"games.jsonl{suffix}"
    path.write_text(json.dumps(RECORD) + "\n")
    with pytest.raises(ValueError, match=r"damaged or cut off after line 0"):
        read_games(path)


def test_games_that_contradict_themselves_are_refused(tmp_path):
    path = tmp_path / "games.jsonl"
    path.write_text(json.dumps(RECORD))
    (game,) = read_games(path)
    lost = (Item("pen 1", "Pen", "box 1"),)
    twice = (*game.items, *game.items)
    with pytest.raises(ValueError, match="'pen 1' is inside 'box 1', which is no receptacle"):
        Engine(dataclasses.replace(game, items=lost))
    with pytest.raises(ValueError, match="'pen 1' is no unique name"):
        Engine(dataclasses.replace(game, items=twice))
    with pytest.raises(ValueError, match="task_type 'juggle'"):
        Engine(dataclasses.replace(game, task_type="juggle"))


# ---------------------------------------------------------------------------------- PDDL problems


PROBLEM = """
(define (problem small) (:domain alfred) (:objects agent1 - agent)
(:init (atLocation agent1 loc_0)
  (receptacleType Bed_bar_1 BedType) (receptacleAtLocation Bed_bar_1 loc_1)
  (objectType Pen_bar_1 PenType) (pickupable Pen_bar_1) (inReceptacle Pen_bar_1 Bed_bar_1)
  (objectAtLocation Pen_bar_1 loc_1) (canContain BedType PenType))
(:goal (exists (?r - receptacle) (exists (?o - object)
  (and (inReceptacle ?o ?r) (objectType ?o PenType) (receptacleType ?r BedType))))))
"""


def test_a_small_problem_becomes_a_game():
    game = read_problem(PROBLEM, "put a pen in bed", id="small", split="train", plan=("look",))
    assert game.receptacles == (Receptacle("bed 1", "Bed", False, "loc_1"),)
    assert game.items == (Item("pen 1", "Pen", "bed 1"),)
    assert (game.task_type, game.agent_start, game.plan) == (TASK_TYPES[0], "loc_0", ("look",))
    assert (game.object_target, game.parent_target, game.toggle_target) == ("Pen", "Bed", "")
    assert game.facts is not None
    assert game.facts.at == {("pen 1", "loc_1")}
    assert Engine(game).won


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("(canContain BedType PenType))", "(canContain BedType PenType)", "never closed"),
        ("(:goal", ")(:goal", "expected one expression|closes nothing"),
        ("(:goal", "(:aim", "section :goal is missing"),
        ("(atLocation agent1 loc_0)", "", r"expected one \(atLocation agent place\), found 0"),
        ("(pickupable Pen_bar_1)", "(pickupable Cup_bar_1)", "Cup_bar_1 has neither"),
        ("(pickupable Pen_bar_1)", "(holds agent1 Pen_bar_1)", "begin with empty hands"),
        ("(pickupable Pen_bar_1)", "(pickupable)", r"fact \(pickupable\) needs 1 argument"),
        ("(pickupable Pen_bar_1)", "(not (openable Bed_bar_1))", "holds another expression"),
        ("(receptacleAtLocation Bed_bar_1 loc_1)", "", "Bed_bar_1 needs both"),
        (
            "(canContain",
            "(receptacleType Bed_bar_1 SofaType) (canContain",
            "both BedType and SofaType",
        ),
        ("(inReceptacle ?o ?r)", "(isSliced ?o)", "the goal is of no known task type"),
        ("(inReceptacle ?o ?r)", "(forall (?o) (isHot ?o))", "condition 'forall' in :goal"),
    ],
)
def test_damaged_problems_are_refused_by_name(old, new, message):
    assert old in PROBLEM
    with pytest.raises(ValueError, match=rf"PDDL problem 'small': .*({message})"):
        read_problem(PROBLEM.replace(old, new), "put a pen in bed", id="small", split="train")


def test_expressions_nest_and_skip_comments():
    assert read_expression("(a (b c) ; (d\n ())") == ["a", ["b", "c"], []]


def test_numbers_run_down_in_the_order_of_lower_case_ids():
    ids = ["Sink_bar_1", "Sink_bar_1_bar_SinkBasin", "mug_bar_b", "Mug_bar_C", "MUG_bar_A"]
    assert name_entities(ids) == {
        "Sink_bar_1": "sink 1",
        "Sink_bar_1_bar_SinkBasin": "sinkbasin 1",
        "MUG_bar_A": "mug 3",
        "mug_bar_b": "mug 2",
        "Mug_bar_C": "mug 1",
    }


def wins(task, commands):
    env = alfworld.make(alfworld.Config())
    env.reset(task)
    results = [env.step(command) for command in commands]
    return bool(results) and results[-1].won


def test_demonstrations_win_generated_games_of_all_kinds():
    cfg = alfworld.Config()
    tasks = alfworld.tasks(cfg, "valid_unseen")[:48]
    assert len({t.kind for t in tasks}) == 6
    for task in tasks:
        commands = alfworld.demonstration(cfg, task, 50)
        assert commands == alfworld.demonstration(cfg, task, 50)
        assert wins(task, commands)
        assert alfworld.demonstration(cfg, task, len(commands) - 1) == ()


def test_demonstrations_of_games_from_files_are_their_plans(data_dir):
    cfg = alfworld.Config(games=str(data_dir / "alfworld" / "games.jsonl.xz"))
    for task in list(alfworld.tasks(cfg, "valid_unseen"))[:20]:
        commands = alfworld.demonstration(cfg, task, 100)
        assert commands == task.payload.plan
        assert wins(task, commands)
