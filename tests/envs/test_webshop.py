"""The shop as an environment: splits, tasks, players, the expert, and what models are shown."""

import functools
import json
import pickle
import random

import pytest

from atod_jax.envs import webshop
from atod_jax.envs.base import Episode, Observation
from atod_jax.envs.webshop import expert, generate, prompts
from atod_jax.envs.webshop.view import make_view, read_wish

CFG = webshop.Config()
TURNS = 15


def play(commands, task, env=None):
    """(the episode when `commands` were sent, the last result)."""
    env = env or webshop.make(CFG)
    now, past, result = env.reset(task), (), None
    for command in commands:
        result = env.step(command)
        past = (*past, (now.text, command))
        now = result.observation
    return Episode(past, now), result


# ------------------------------------------------------------------------------------ environment


def test_the_first_goals_are_for_validation():
    valid, train = (webshop.tasks(CFG, split) for split in ("valid", "train"))
    assert (len(valid), valid[0].id, valid[-1].id, train[0].id) == (
        500, "goal-0", "goal-499", "goal-500",
    )  # fmt: skip
    assert len(train) > 1000
    assert [task.id for task in train[2:4]] == ["goal-502", "goal-503"]
    with pytest.raises(IndexError):
        valid[500]
    with pytest.raises(ValueError, match="split 'test' is unknown; use one of train, valid"):
        webshop.tasks(CFG, "test")


def test_too_few_goals_for_a_split(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    row = {
        "asin": "B1", "name": "Shoe", "full_description": "", "small_description": [],
        "customization_options": "", "query": "shoes", "category": "c", "product_category": "p",
    }  # fmt: skip
    note = {"attributes": ["soft"], "instruction": "Find shoes", "instruction_attributes": ["soft"]}
    (tmp_path / "items_shuffle.json").write_text(json.dumps([row]), encoding="utf-8")
    (tmp_path / "items_ins_v2.json").write_text(json.dumps({"B1": note}), encoding="utf-8")
    cfg = webshop.Config(data=str(tmp_path))
    assert len(webshop.tasks(cfg, "valid")) == 1
    with pytest.raises(ValueError, match="1 goals, none for split 'train'"):
        webshop.tasks(cfg, "train")
    with pytest.raises(FileNotFoundError, match="no folder nowhere"):
        webshop.tasks(webshop.Config(data="nowhere"), "train")


def test_a_purchase_pays_only_when_everything_fits():
    task = webshop.tasks(CFG, "train")[0]
    winning = webshop.demonstration(CFG, task, TURNS)
    env = webshop.make(CFG)
    _, result = play(winning, task, env)
    assert (result.reward, result.done, result.won, result.score) == (10.0, True, True, 1.0)
    with pytest.raises(ValueError, match="outside a visit"):
        env.step("click[back to search]")
    options = [c for c in winning if c.startswith("click[") and not c.startswith("click[b")]
    without = [c for c in winning if c != options[0]]
    _, result = play(without, task, env)
    assert (result.reward, result.done, result.won) == (0.0, True, False)
    assert 0 < result.score < 1
    _, result = play(winning[:-1], task, env)
    assert (result.reward, result.done, result.won, result.score) == (0.0, False, False, None)
    env.close()
    env.close()
    with pytest.raises(ValueError, match="outside a visit"):
        env.step("search[x]")


def test_players_and_tasks_travel():
    factory = pickle.loads(pickle.dumps(functools.partial(webshop.make, CFG)))
    tasks = webshop.tasks(CFG, "valid")
    data = pickle.dumps(tasks[7])
    assert len(data) < 300
    ours, theirs = webshop.make(CFG).reset(tasks[7]), factory().reset(pickle.loads(data))
    assert ours == theirs
    assert ours.commands == ("search[<your query>]", "click[search]")


def test_the_seed_makes_another_shop():
    one, same, other = (list(generate.products(seed)) for seed in (0, 0, 1))
    assert one == same != other
    assert len(one) == generate.PRODUCTS == len({product.asin for product in one})
    wanted = [(product.query, frozenset(product.wanted)) for product in one]
    assert len(set(wanted)) == len(wanted)  # so every goal points at one product


# ----------------------------------------------------------------------------------------- expert


@pytest.mark.parametrize("seed", [0, 1])
def test_the_expert_meets_the_goals(seed):
    cfg = webshop.Config(seed=seed)
    tasks = webshop.tasks(cfg, "valid")
    plans = [webshop.demonstration(cfg, task, TURNS) for task in tasks]
    assert sum(map(bool, plans)) >= 0.95 * len(tasks)
    assert max(map(len, plans)) <= TURNS
    assert webshop.demonstration(cfg, tasks[0], 2) == ()


def test_a_random_player_hardly_ever_does():
    rng, won, bought = random.Random(0), 0, 0
    env = webshop.make(CFG)
    for task in webshop.tasks(CFG, "valid")[:300]:
        now = env.reset(task)
        for _ in range(TURNS):
            result = env.step(expert.disturb(rng, now.commands, absent=0.2))
            now = result.observation
            if result.done:
                won, bought = won + result.won, bought + 1
                break
    assert won <= 6
    assert bought > 30


def test_the_expert_recovers_from_foreign_actions():
    rng, won = random.Random(1), 0
    tasks = webshop.tasks(CFG, "valid")[:100]
    env = webshop.make(CFG)
    for task in tasks:
        now, past, result = env.reset(task), (), None
        for turn in range(TURNS):
            command = expert.act(Episode(past, now))
            foreign = turn < 8 and turn % 2 and command != "click[buy now]"
            if foreign:
                command = expert.disturb(rng, [c for c in now.commands if c != "click[buy now]"])
            past = (*past, (now.text, command))
            result = env.step(command)
            now = result.observation
            if result.done:
                break
        won += result.won
    assert won > 60  # it trusts any item that has the wanted options


def test_thoughts_say_why():
    task = webshop.tasks(CFG, "valid")[0]
    winning = webshop.demonstration(CFG, task, TURNS)
    start, _ = play((), task)
    assert expert.thought(start, winning[0]).startswith("look for ")
    assert "not sure" in expert.thought(start, "search[boats]")
    end, _ = play(winning[:-1], task)
    assert expert.thought(end, "click[buy now]") == "all is chosen so buy"


# ---------------------------------------------------------------------------------- what is shown

OPENING = "WebShop [SEP] Instruction: [SEP] Find me a hat [SEP] Search"
RESULTS = (
    "Instruction: [SEP] Find me a hat [SEP] Back to Search [SEP] Page 1 (Total results: 2) [SEP]"
    " Next > [SEP] B1 [SEP] A [SEP] hat [SEP] $5.0 [SEP] B2 [SEP] $7.0 to $9.0"
)
PAGE = Observation(RESULTS, ("click[back to search]", "click[next >]", "click[b1]", "click[b2]"))
SECOND = Episode(((OPENING, "search[hat]"),), PAGE)


def test_the_paper_prompt_without_history():
    start = Observation(OPENING, ("search[<your query>]", "click[search]"))
    first = prompts.paper_prompt(Episode((), start), 2)
    assert "Your task is to: Find me a hat\n" in first
    assert "now: 'Search'\n" in first
    assert "[\n'search[<your query>]',\n'click[search]',\n]" in first
    assert "<action> </action>" in first
    assert "<think> </think>" in first
    later = prompts.paper_prompt(SECOND, 0)
    assert "step" not in later.split("It is your turn")[0]
    assert (
        "now: 'Back to Search' [SEP] 'Page 1 (Total results: 2)' [SEP] 'Next >' [SEP] 'B1'" in later
    )


def test_the_paper_prompt_with_history():
    shown = prompts.paper_prompt(SECOND, 2)
    assert "[Observation 1: ''Search'', Action 1: 'search[hat]']" in shown
    assert "taken 1 step(s)" in shown
    assert "This is step 2." in shown
    past = tuple((OPENING, f"search[{n}]") for n in range(5))
    shown = prompts.paper_prompt(Episode(past, PAGE), 2)
    assert "Action 3" not in shown
    assert "Action 4: 'search[3]'" in shown
    assert "Action 5: 'search[4]'" in shown


def test_a_prompt_beyond_the_limit_is_shown_without_history():
    def prompt(size: int) -> str:
        past = ((OPENING, "search[hat]"), (f"{RESULTS} {'x' * size}", "click[b1]"))
        return prompts.paper_prompt(Episode(past, PAGE), 2)

    room = prompts.MAX_PROMPT_CHARS - len(prompt(0))
    assert len(prompt(room)) == prompts.MAX_PROMPT_CHARS
    assert prompt(room + 1) == prompts.paper_prompt(Episode(((OPENING, "x"),), PAGE), 0)


def test_texts_without_the_task_are_shown_whole():
    assert prompts.shown_text("a [SEP] b", "c") == "a [SEP] b"
    assert prompts.shown_text("a [SEP] c [SEP] b", "c") == "'b'"


@pytest.mark.parametrize(
    ("response", "command", "valid"),
    [
        ("<think>x</think><action> Click[B1] </action>", "click[b1]", True),
        ("<think>x</think><action>fly</action>", "fly", True),  # membership is not checked
        ("<action>click[b1]</action>", "click[b1]", False),
        ("<THINK>x</THINK><action>click[b1]</action>", "click[b1]", False),
        ("<think>\u4e2d</think><action>click[b1]</action>", "click[b1]", False),
        ("<think>x</think> I would rather CLICK[next >]", "rather click[next >]", False),
        ("", "", False),
    ],
)
def test_paper_answers_become_commands(response, command, valid):
    projection = prompts.paper_project(response, PAGE.commands)
    assert (projection.command, projection.valid) == (command, valid)


@pytest.mark.parametrize(
    ("response", "command", "valid"),
    [
        ("search red hat", "search[red hat]", True),
        ("<think>so</think> click  b1", "click[b1]", True),
        ("click next >", "click[next >]", True),
        ("click b3", "click[b3]", False),
        ("click search", "click[search]", False),
        ("search", "search", False),
        ("buy it", "buy it", False),
        ("search " + "x" * 200, f"search[{'x' * 113}]", True),
        ("", "", False),
    ],
)
def test_compact_answers_become_commands(response, command, valid):
    projection = prompts.compact_project(response, (*PAGE.commands, "click[search]"))
    assert (projection.command, projection.valid) == (command, valid)


@pytest.mark.parametrize("name", webshop.ENVIRONMENT.templates)
def test_ideal_answers_lead_back_to_their_commands(name):
    template = webshop.ENVIRONMENT.templates[name]
    for command in ("search[red hat]", "click[next >]", "click[b1]"):
        response = template.respond(command, "so it is")
        assert template.project(response, PAGE.commands) == (
            type(template.project(response, ()))(command, True)
        )
        assert template.project(template.respond(command, ""), PAGE.commands).command == command


def test_the_view_of_a_results_page():
    view = make_view(SECOND)
    assert (view.kind, view.page, view.wish.request) == ("results", 1, "a hat")
    assert [(o.id, o.title, o.price, o.opened) for o in view.offers] == [
        ("b1", "A [SEP] hat", "$5.0", False),
        ("b2", "", "$7.0 to $9.0", False),
    ]
    assert [offer.cheapest for offer in view.offers] == [5.0, 7.0]
    back = Episode((*SECOND.past, (RESULTS, "click[b2]"), ("item", "click[< prev]")), PAGE)
    assert [offer.opened for offer in make_view(back).offers] == [False, True]
    again = Episode((*back.past, (RESULTS, "search[hat]")), PAGE)
    assert [offer.opened for offer in make_view(again).offers] == [False, False]


def test_goal_sentences_are_taken_apart():
    wish = read_wish(
        "Find me soft shoes with laces for girls with color: red, and size: 9, and a half, and"
        " price lower than 40.00 dollars"
    )
    assert wish.request == "soft shoes with laces for girls"
    assert wish.options[0] == ("color", "red")
    assert wish.limit == 40.0
    plain = read_wish("Find me soft shoes with laces")
    assert (plain.request, plain.options, plain.limit) == (
        "soft shoes with laces",
        (),
        float("inf"),
    )


def test_every_page_has_a_compact_prompt():
    task = webshop.tasks(CFG, "valid")[0]
    winning = webshop.demonstration(CFG, task, TURNS)
    buy = len(winning) - 1
    shown = []
    for commands in [winning[:n] for n in range(buy + 1)] + [(*winning[:buy], "click[features]")]:
        episode, _ = play(commands, task)
        shown.append(prompts.compact_prompt(episode, 2))
    assert all(text.startswith("want: ") for text in shown)
    assert "page 1" in shown[1]
    assert "chosen: " in shown[2]
    assert winning[2].removeprefix("click[").removesuffix("]") in shown[3].partition("chosen: ")[2]
    assert len(set(shown)) == len(shown)


def test_a_click_in_vain_is_shown_once_on_any_page():
    task = webshop.tasks(CFG, "valid")[0]
    winning = webshop.demonstration(CFG, task, TURNS)
    for before in (winning[:1], winning[:2]):
        pages = [play((*before, *more), task)[0] for more in ((), ("click[nowhere at all]",))]
        plain, after = (prompts.compact_prompt(episode, 2) for episode in pages)
        assert after == f"{plain}\nno: nowhere at all"
        assert expert.act(pages[0]) == expert.act(pages[1])
    again, _ = play((*winning[:2], "click[nowhere at all]", winning[2]), task)
    assert "no: " not in prompts.compact_prompt(again, 2)


def test_a_search_that_finds_nothing_has_a_prompt():
    task = webshop.tasks(CFG, "valid")[0]
    episode, _ = play(("search[zzzz]",), task)
    assert prompts.compact_prompt(episode, 2).endswith("page 1")


def test_a_text_without_a_goal_is_refused():
    for template in webshop.ENVIRONMENT.templates.values():
        with pytest.raises(ValueError, match="no instruction in the first observation: 'hello'"):
            template.prompt(Episode((), Observation("hello")), 2)


def test_peoples_goals_need_their_file():
    with pytest.raises(ValueError, match=r"human_goals=True: .* set env\.webshop\.data"):
        webshop.Config(human_goals=True)
