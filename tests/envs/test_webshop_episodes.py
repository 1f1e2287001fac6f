"""Every recorded step of the original engine: texts, actions, reward; and the rules behind them."""

import dataclasses

import pytest
import webshop_records

from atod_jax.envs.webshop import catalogue, goals, pages, reward, shop
from atod_jax.envs.webshop.engine import Engine, parse_command

# ----------------------------------------------------------------------------------- recorded runs


@pytest.fixture(scope="module")
def opened(data_dir, tmp_path_factory) -> shop.Shop:
    folder = data_dir / "webshop"
    (products,), (notes,) = folder.glob("products*"), folder.glob("items_ins*")
    rows, found = catalogue.read_rows(products), catalogue.read_notes(notes)
    made = catalogue.products(rows, found, source="recorded")
    return shop.from_folder(tmp_path_factory.mktemp("shop") / "index", lambda: made)


@pytest.fixture(scope="module")
def episodes(data_dir):
    return webshop_records.rows(data_dir / "webshop", "episodes")


def _differences(engine: Engine, episode: dict) -> list[str]:
    found = []
    for number, step in enumerate(episode["steps"]):
        if number:
            engine.step(step["action"])
        seen = {
            "obs": pages.text(engine.page),
            "obs_rich": pages.text_rich(engine.page),
            "available": {
                "has_search_bar": engine.has_search_bar,
                "clickables": list(engine.clickables),
            },
            "reward": engine.score or 0.0,
            "done": engine.score is not None,
        }
        recorded = {"reward": 0.0, "done": False} | step
        found += [
            f"{episode['id']} step {number} {step['action']!r}: {key}"
            for key, value in seen.items()
            if recorded[key] != value
        ]
    return found


def test_every_step_of_the_recorded_episodes(opened, episodes):
    differences = [
        difference
        for episode in episodes
        for difference in _differences(Engine(opened, opened.goal(episode["goal_index"])), episode)
    ]
    assert sum(len(episode["steps"]) for episode in episodes) > len(episodes) > 0
    assert differences == []


def test_the_parts_of_every_recorded_score(opened, episodes):
    numbers = {opened.product(n).asin: n for n in range(len(opened))}
    bought = [episode for episode in episodes if episode.get("bought")]
    assert len(bought) > 0
    for episode in bought:
        goal, parts = opened.goal(episode["goal_index"]), episode["verbose_info"]
        number = numbers[episode["bought"]]
        product = opened.product(number)
        attributes = [reward.has_attribute(product, wanted) for wanted in goal.attributes]
        assert sum(attributes) / len(attributes) == parts["r_att"]
        chosen = episode["bought_options"].values()
        if goal.options:
            assert reward.options_met(goal, chosen) / len(goal.options) == parts["r_option"]
        assert (opened.price(number) <= goal.price_limit) == parts["r_price"]
        assert reward.kind_factor(goal, product, reward.longer_words) == parts["r_type"]


def test_scores_of_the_wanted_product_need_no_tagger(opened, episodes):
    """Whatever counts as a noun, the goal's own product is of the right kind."""
    independent = [e for e in episodes if e.get("independent_of_tagger")]
    assert len(independent) > 0
    for episode in independent:
        goal = opened.goal(episode["goal_index"])
        for nouns in (str.split, lambda title: [], lambda title: title.split()[-1:]):
            engine = Engine(opened, goal, nouns=nouns)
            for step in episode["steps"][1:]:
                engine.step(step["action"])
            assert engine.score == episode["reward"]


# -------------------------------------------------------------------------------------------- rules

SHOE = catalogue.Product(
    asin="B1", title="Soft Red Shoe", description="made of leather", bullets=("has laces", ""),
    prices=(5.0,), options={"color": ("red", "blue"), "fit": ('9" wide', "slim")},
    attributes=("soft sole",), query="shoes", category="fashion",
    product_category="Clothing \u203a Shoes", request="Find me soft shoes", wanted=("soft sole",),
)  # fmt: skip
GOAL = goals.make_goal(SHOE, 0, 10.0)


class OneShelf:
    """A shop of a few products; every search finds all of them."""

    def __init__(self, count: int = 25):
        self._products = [dataclasses.replace(SHOE, asin=f"B{n}") for n in range(count)]

    def search(self, query: str) -> range:
        return range(len(self._products) if query else 0)

    def product(self, number: int) -> catalogue.Product:
        return self._products[number]

    def price(self, number: int) -> float:
        return 5.0


def play(*commands: str, count: int = 25) -> Engine:
    engine = Engine(OneShelf(count), GOAL)
    for command in commands:
        engine.step(command)
    return engine


def test_results_come_in_pages_of_ten():
    assert "click" not in pages.text(play().page)
    engine = play("search[shoe]")
    assert engine.clickables[:3] == ("back to search", "next >", "b0")
    engine.step("click[next >]")
    engine.step("click[next >]")
    assert engine.clickables == (
        "back to search",
        "< prev",
        "next >",
        *(f"b{n}" for n in range(20, 25)),
    )
    engine.step("click[next >]")
    assert engine.clickables == ("back to search", "< prev", "next >")
    for _ in range(3):
        engine.step("click[< prev]")
    assert engine.clickables == play("search[shoe]").clickables


def test_choices_last_until_the_item_is_left():
    engine = play("search[shoe]", "click[b3]", "click[blue]", "click[red]", "click[features]")
    assert pages.text(engine.page).endswith("< Prev [SEP] has laces [SEP] ")
    engine.step("click[< prev]")
    assert "You have clicked red.\n" in pages.text_rich(engine.page)
    assert "[button] blue [button_]" in pages.text_rich(engine.page)
    engine.step("click[< prev]")
    assert "[clicked button] B3 [clicked button_]" in pages.text_rich(engine.page)
    engine.step("click[b3]")
    assert "clicked" not in pages.text_rich(engine.page)


def test_a_value_that_json_escapes_does_not_show_as_clicked_but_counts():
    engine = play("search[shoe]", "click[b0]", 'click[9" wide]', "click[red]")
    assert 'clicked 9" wide' not in pages.text_rich(engine.page)
    engine.step("click[buy now]")
    assert engine.score == 1.0


def test_a_new_search_and_the_way_back_forget():
    engine = play("search[shoe]", "click[b0]", "click[back to search]", "search[shoe]")
    assert "clicked" not in pages.text_rich(engine.page)
    engine = play("search[shoe]", "click[b0]", "search[shoe]")
    assert "[clicked button] B0" in pages.text_rich(engine.page)
    assert play("search[ ]").clickables == ("back to search", "next >")


IDLE = ("look", "search", "search[]", "click[]", "click[search]", "click[b0]", "buy[buy now]",
        "Search[shoe]", "click[buy now", "[x]", "", "\n", "\nsearch[shoe]", "click[\x00]",
        "a" * 100_000, "[" * 100_000, "search" + "[" * 50_000 + "]" * 50_000)  # fmt: skip


@pytest.mark.parametrize("command", IDLE, ids=lambda command: repr(command[:20]))
def test_what_is_no_action_changes_nothing(command):
    assert play(command).page == play().page
    item = ("search[shoe]", "click[b0]", "click[red]")
    if not command.startswith("click["):
        assert play(*item, command).page == play(*item).page


def test_a_huge_search_is_a_search():
    words = "shoe " * 20_000
    assert play(f"search[{words}]").clickables == play("search[shoe]").clickables


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        ("search[a b]", ("search", "a b")),
        ("click[Buy Now] and more", ("click", "buy now")),
        ("search[a [b]", ("search[a ", "b")),
        ("search[a] [b] c", ("search[a] ", "b")),
        ("search[[x]", ("search[", "x")),
        ("search[x[]", ("search", "x[")),
        ("search[x]]", ("search", "x]")),
        ("search[a\nb]", ("", "")),
        ("search[a]\nb]", ("search", "a")),
        ("[]", ("", "")),
        ("x[]", ("", "")),
    ],
)
def test_commands_are_split_at_the_last_bracket_that_holds_anything(command, parts):
    assert parse_command(command) == parts


def test_nothing_happens_after_the_purchase():
    engine = play("search[shoe]", "click[b0]", "click[buy now]")
    assert engine.score == 2 / 4  # an attribute and the price, of one, two options and the price
    page = engine.page
    engine.step("search[shoe]")
    assert engine.page is page
    assert engine.clickables == ()


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        ({}, 1.0),
        ({"title": "Soft Red Boot", "query": "boots", "product_category": "Boots"}, 1.0),
        ({"title": "Hat", "query": "shoes"}, 0.0),
    ],
)
def test_the_kind_of_product_scales_the_score(changes, factor):
    bought = dataclasses.replace(SHOE, **changes)
    assert reward.kind_factor(GOAL, bought, reward.longer_words) == factor


def test_distant_titles_halve_the_score_or_worse():
    other = dataclasses.replace(SHOE, query="boots", product_category="Boots")
    nouns = {SHOE.title: tuple("abcdefghijk"), "five": ("a", "b"), "eleven": ("a",)}
    factors = [
        reward.kind_factor(GOAL, dataclasses.replace(other, title=title), nouns.__getitem__)
        for title in ("five", "eleven")
    ]
    assert factors == [0.5, 0.1]
    no_noun = reward.kind_factor(GOAL, other, lambda title: ())
    assert no_noun == 0.5


def test_options_match_by_shared_words_and_colours_by_themselves():
    def met(wanted: dict[str, str], *chosen: str) -> int:
        return reward.options_met(dataclasses.replace(GOAL, options=tuple(wanted.items())), chosen)

    assert met({"size": "x-large"}, "large") == 1  # all its words are among the wanted ones
    assert met({"size": "large"}, "x-large") == 0
    assert met({"color": "gray"}, "dark gray") == 0  # reduced to "dark"
    assert met({"color": "gray"}, "a1-gray") == 1
    assert met({"color": "a1-gray"}, "gray") == 1
    assert met({"color": "red", "size": "9"}, "9", "red") == 2
    assert met({"color": "red"}) == 0


def test_attributes_may_stand_in_the_texts():
    wanted = {"sole soft": 1, "leather": 1, "laces": 1, "red shoe": 1, "rubber": 0}
    assert {w: reward.has_attribute(SHOE, w) for w in wanted} == {
        w: bool(v) for w, v in wanted.items()
    }


def test_price_counts():
    goal = dataclasses.replace(GOAL, options={})
    assert reward.score(goal, SHOE, 10.0, ()) == 1.0
    assert reward.score(goal, SHOE, 10.01, ()) == 0.5
