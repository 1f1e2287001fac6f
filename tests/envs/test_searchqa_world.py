"""The environment as a whole: generated questions, their expert, files of questions, bad input."""

import functools
import json
import pickle
import random
import subprocess
import sys

import pytest

from atod_jax import config
from atod_jax.envs import searchqa
from atod_jax.envs.base import Episode
from atod_jax.envs.searchqa import expert, generate, jsonl
from atod_jax.envs.searchqa.prompts import compact_prompt

CONFIG = searchqa.Config()
TURNS = 4


def play(env, task, policy):
    """The result that ends an episode under policy(episode) -> command."""
    episode = Episode((), env.reset(task))
    while True:
        command = policy(episode)
        result = env.step(command)
        if result.done:
            return result
        past = (*episode.past, (episode.current.text, command))
        episode = Episode(past, result.observation)


def success(cfg, tasks, policy):
    env = searchqa.make(cfg, TURNS)
    return sum(play(env, task, policy).won for task in tasks) / len(tasks)


@pytest.mark.parametrize("split", searchqa.ENVIRONMENT.splits)
@pytest.mark.parametrize("form", ["json", "plain"])
def test_the_expert_answers_the_generated_questions(split, form):
    cfg = searchqa.Config(seed=3, information=form)
    tasks = searchqa.tasks(cfg, split)
    assert {t.kind for t in tasks} == {"one-hop", "two-hop"}
    assert success(cfg, tasks, expert.act) >= 0.95


def test_blind_and_random_players_fail():
    tasks = searchqa.tasks(CONFIG, "test")
    rng = random.Random(0)
    names = [n for kind in generate.KINDS for n in generate.all_names(kind)]
    assert success(CONFIG, tasks, lambda episode: f"<answer>{rng.choice(names)}</answer>") < 0.02
    disturbed = functools.partial(expert.disturb, rng, (), absent=0.3)
    assert success(CONFIG, tasks, lambda episode: disturbed()) < 0.02


def test_most_questions_of_two_hops_need_two_searches():
    """The second passage is seldom among the results of the first search."""
    two = [t for t in searchqa.tasks(CONFIG, "test") if t.kind == "two-hop"]
    lengths = [len(searchqa.demonstration(CONFIG, t, TURNS)) for t in two]
    assert set(lengths) == {2, 3}
    assert lengths.count(3) > 0.8 * len(lengths)
    assert searchqa.demonstration(CONFIG, two[lengths.index(3)], 2) == ()


def test_the_expert_recovers_from_foreign_commands():
    tasks = searchqa.tasks(CONFIG, "dev")
    rng = random.Random(1)

    def late(episode):
        return expert.act(episode) if episode.past else expert.disturb(rng, (), absent=0.0)

    assert success(CONFIG, tasks, late) >= 0.95


def test_held_out_questions_share_no_entity_with_training():
    world = generate.world(0)
    mentioned = {}
    for split, questions in world.questions.items():
        names = {q.answers[0] for q in questions}
        names |= {expert.read_question(q.question).entity for q in questions}
        assert names <= {n for kind in generate.KINDS for n in generate.all_names(kind)}
        mentioned[split] = names
    assert not mentioned["train"] & (mentioned["dev"] | mentioned["test"])
    assert not mentioned["dev"] & mentioned["test"]


def test_no_answer_stands_in_its_question():
    for questions in generate.world(0).questions.values():
        assert not [q for q in questions if q.answers[0] in q.question]
        assert len({q.question for q in questions}) == len(questions)


def test_the_world_is_a_function_of_its_seed():
    first = generate.world(5)
    generate.world.cache_clear()
    assert generate.world(5) == first != generate.world(6)


def test_players_and_tasks_travel_to_other_processes():
    make, task = pickle.loads(
        pickle.dumps(
            (functools.partial(searchqa.make, CONFIG, TURNS), searchqa.tasks(CONFIG, "dev")[0])
        )
    )
    assert play(make(), task, expert.act).won
    assert len(pickle.dumps(task)) < 1000


def test_playing_leaves_the_accelerator_alone():
    code = (
        "from atod_jax.envs import searchqa; from atod_jax.envs.searchqa import server;"
        "from jax._src import xla_bridge; cfg = searchqa.Config(); env = searchqa.make(cfg);"
        "env.reset(searchqa.tasks(cfg, 'dev')[0]); env.step('<search>x</search>');"
        "print(xla_bridge.backends_are_initialized())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_thoughts_lead_to_the_command_and_name_what_was_read():
    task = next(t for t in searchqa.tasks(CONFIG, "dev") if t.kind == "two-hop")
    env = searchqa.make(CONFIG)
    episode = Episode((), env.reset(task))
    assert expert.thought(episode, expert.act(episode)).startswith("look for ")
    assert expert.thought(episode, "<search>x</search>") == "try search x"
    command = expert.act(episode)
    episode = Episode(((episode.current.text, command),), env.step(command).observation)
    middle = expert.act(episode).removeprefix("<search>").removesuffix("</search>")
    assert f" is {middle}. look for {middle}" in expert.thought(episode, expert.act(episode))
    assert middle in compact_prompt(episode, 4)


# ------------------------------------------------------------------------------- recorded questions


def test_recorded_questions_have_their_set_as_kind_and_are_playable(data_dir):
    folder = str(data_dir / "searchqa")
    cfg = searchqa.Config(data=folder)
    path = jsonl.find(folder, "questions.jsonl")
    records = list(jsonl.read(path, dict))
    for split in {r["split"] for r in records}:
        tasks = searchqa.tasks(cfg, split)
        assert {(t.id, t.kind) for t in tasks} == {
            (r["id"], r["dataset"]) for r in records if r["split"] == split
        }
        env = searchqa.make(cfg, TURNS)
        for task in tasks[:20]:
            results = [env.reset(task), env.step(f"<search>{task.payload.question}</search>")]
            assert "Doc 1: " in results[1].observation.text
            assert env.step(f"<answer>{task.payload.answers[-1]}</answer>").reward == 1.0
            play(env, task, expert.act)  # a question of no known form is no fault


# ---------------------------------------------------------------------------------------- bad input

RECORD = {"id": "a", "dataset": "nq", "split": "test", "question": "who?", "answers": ["me"]}


def write(folder, *records):
    text = "".join(json.dumps(r) + "\n" for r in records)
    (folder / "questions.jsonl").write_text(text, encoding="utf-8")
    return searchqa.Config(data=str(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": []}, r"line 2: answers=\[\]: give a list"),
        ({"answers": ["a", 5]}, r"line 2: answers=\['a', 5\]"),
        ({"answers": "me"}, "line 2: answers='me'"),
        ({"question": " "}, "line 2: the question is empty"),
        ({"question": None}, "line 2: field 'question' is NoneType"),
        ({"split": "valid"}, "line 2: split='valid': use one of train, dev, test"),
    ],
)
def test_damaged_questions_are_named(change, message, tmp_path):
    cfg = write(tmp_path, RECORD, RECORD | change)
    with pytest.raises(ValueError, match=message):
        searchqa.tasks(cfg, "test")


def test_splits_and_files_that_are_missing_are_named(tmp_path):
    with pytest.raises(ValueError, match="split 'valid' is unknown; use one of train, dev, test"):
        searchqa.tasks(CONFIG, "valid")
    with pytest.raises(FileNotFoundError, match=r"no questions\.jsonl"):
        searchqa.tasks(searchqa.Config(data=str(tmp_path)), "test")
    cfg = write(tmp_path, RECORD)
    with pytest.raises(ValueError, match="no questions in split 'dev'; it has those of: test"):
        searchqa.tasks(cfg, "dev")
    with pytest.raises(FileNotFoundError, match=r"no corpus\.jsonl.*env\.searchqa\.retriever"):
        searchqa.make(cfg)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="no questions in split 'test'; it has those of: no split"):
        searchqa.tasks(write(empty), "test")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("topk", 0, r"topk=0: must be at least 1"),
        ("information", "xml", "information='xml': choose from json, plain"),
    ],
)
def test_bad_settings_are_named(key, value, message):
    with pytest.raises(ValueError, match=message):
        searchqa.Config(**{key: value})


def test_every_setting_is_an_option_with_the_same_default():
    c = config.base(env="searchqa")
    assert config.resolve(c, model_required=False).env.settings == searchqa.Config()
    c.env.searchqa.topk = 1
    assert config.resolve(c, model_required=False).env.settings == searchqa.Config(topk=1)
