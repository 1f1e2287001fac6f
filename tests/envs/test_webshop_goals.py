"""Products, prices and goals are those of the reference run, and bad files are named."""

import dataclasses
import gzip
import json
import os
import shutil

import pytest
import webshop_records

from atod_jax.envs.webshop import catalogue, goals, reward, shop

ROW = {
    "asin": "B1", "name": "Red Shoe", "full_description": "A shoe.", "pricing": "$5.50",
    "small_description": ["It is red"], "query": " Shoes ", "category": "fashion",
    "product_category": "Shoes \u203a Red",
    "customization_options": {"Color": [{"value": " Red/Blue "}, {"value": "X"}], "none": None},
}  # fmt: skip
NOTE = {"attributes": ["soft"], "instruction": "Find me soft shoes",
        "instruction_attributes": ["soft"]}  # fmt: skip


def one_product(**changes) -> catalogue.Product:
    return next(catalogue.products([ROW | changes], {"B1": NOTE}, source="test"))


# ------------------------------------------------------------------------------- the reference run


@pytest.fixture(scope="module")
def opened(data_dir, tmp_path_factory) -> shop.Shop:
    folder = data_dir / "webshop"
    (products,), (notes,) = folder.glob("products*"), folder.glob("items_ins*")
    rows, found = catalogue.read_rows(products), catalogue.read_notes(notes)
    made = catalogue.products(rows, found, source="recorded")
    return shop.from_folder(tmp_path_factory.mktemp("shop") / "index", lambda: made)


def test_every_goal_and_its_place(data_dir, opened):
    recorded = webshop_records.rows(data_dir / "webshop", "goals")
    assert opened.goal_count == len(recorded) > 0
    for number, row in enumerate(recorded):
        goal = opened.goal(number)
        assert (goal.asin, goal.instruction, list(goal.attributes), dict(goal.options)) == (
            row["asin"], row["instruction_text"], row["attributes"], row["goal_options"],
        )  # fmt: skip
        assert (goal.price_limit, goal.title, goal.query, goal.category, goal.product_category) == (
            row["price_upper"], row["name"], row["query"], row["category"], row["product_category"],
        )  # fmt: skip


def test_every_price(data_dir, opened):
    recorded = webshop_records.document(data_dir / "webshop", "prices")
    drawn = {opened.product(n).asin: opened.price(n) for n in range(len(opened))}
    assert drawn == recorded
    assert len(recorded) > 0


def test_the_text_a_search_looks_in(data_dir, opened):
    rows = webshop_records.rows(data_dir / "webshop", "products")
    assert len(rows) == len(opened)
    differing = [
        row["asin"]
        for number, row in enumerate(rows)
        if opened.product(number).indexed_text != row["indexed_contents"]
    ]
    assert differing == []


# ---------------------------------------------------------------------------------------- cleaning


def test_a_raw_row_becomes_a_product():
    product = one_product()
    assert product.options == {"color": ("red | blue", "x")}
    assert (product.prices, product.price_tag, product.query) == ((5.5,), "$5.5", "shoes")
    assert product.indexed_text == "red shoe a shoe. it is red color: red | blue, x"
    assert one_product(small_description="one").bullets == ("one",)
    assert one_product(pricing="").price_tag == "$100.0"
    assert one_product(pricing="$1,005.00 to $1,010 to $3").price_tag == "$1005.0 to $1010.0"
    assert one_product(customization_options="").options == {}


def test_repeated_and_odd_ids_are_left_out():
    ids = ["B1", "B1", "nan", "B1234567890", "B2"]
    found = catalogue.products([ROW | {"asin": i} for i in ids], {}, source="test")
    assert [p.asin for p in found] == ["B1", "B2"]
    assert one_product(asin="B9").attributes == ("DUMMY_ATTR",)


def test_goals_name_every_choice_of_options():
    product = one_product(
        customization_options={"size": [{"value": "s"}, {"value": "m"}], "color": [{"value": "c"}]}
    )
    made = [goals.make_goal(product, choice, 20.0) for choice in range(goals.choices(product))]
    assert [goal.instruction for goal in made] == [
        f"Find me soft shoes with color: c, and size: {size}, and price lower than 20.00 dollars"
        for size in ("s", "m")
    ]
    free = goals.make_goal(one_product(customization_options=None), 0, goals.NO_LIMIT)
    assert (free.instruction, free.options) == ("Find me soft shoes", ())


def test_people_ask_in_their_own_words(data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = webshop_records.document(data_dir / "webshop", "human")
    opened = shop.cached(data_dir / "webshop", people=True)
    wishes = {(r["asin"], r["instruction"].strip(".")): r for some in asked.values() for r in some
              if r["instruction_attributes"]}  # fmt: skip
    assert opened.goal_count == len(wishes) > 0
    prices = {opened.product(n).asin: opened.price(n) for n in range(len(opened))}
    for number in range(opened.goal_count):
        goal = opened.goal(number)
        text = goal.instruction.split(", and price lower than ")[0]
        wish = wishes.pop((goal.asin, text))
        assert goal.attributes == tuple(wish["instruction_attributes"])
        assert goal.options == tuple(wish["instruction_options"])
        assert goal.price_limit > prices[goal.asin]
    assert wishes == {}


def test_a_persons_value_is_met_by_a_value_like_it():
    request = catalogue.Request("a shoe", ("soft",), ("dark red", "size 9"))
    product = dataclasses.replace(one_product(), people=(request,))
    goal = goals.make_persons_goal(product, 0, 20.0)
    assert goal.instruction == "a shoe, and price lower than 20.00 dollars"
    # reduced to the first colour word of the list: "dark" for both
    assert reward.options_met(goal, ["dark green", "size 9 wide"]) == 2
    assert reward.options_met(goal, ["red", "9"]) == 1
    assert reward.options_met(goal, ["size 8"]) == 0


def test_price_limits_lie_above_the_price():
    rng = goals.make_rng()
    limits = {goals.draw_limit(33.0, rng) for _ in range(200)}
    assert limits == {50.0, 60.0, 70.0}  # the larger of two of 40, 50, 60 and 70
    assert goals.draw_limit(979.0, rng) == 990.0
    assert goals.draw_limit(985.0, rng) == goals.NO_LIMIT


# ------------------------------------------------------------------------------------- bad files


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = tmp_path / "data"
    made.mkdir()
    (made / "items_shuffle.json").write_text(json.dumps([ROW]), encoding="utf-8")
    (made / "items_ins_v2.json").write_text(json.dumps({"B1": NOTE}), encoding="utf-8")
    return made


def test_official_files_make_a_shop_once(folder, monkeypatch):
    first = shop.cached(folder)
    assert (len(first), first.goal_count) == (1, 2)
    monkeypatch.setattr(catalogue, "read_rows", None)  # the second time nothing is read
    again = shop.cached(folder)
    assert [again.goal(n) for n in range(2)] == [first.goal(n) for n in range(2)]
    assert again.search("shoe") == first.search("shoe") == (0,)


def test_a_shop_is_found_by_what_is_in_its_files(folder, tmp_path):
    """Two shops whose files agree in name, size and time are two shops; a copy is the same one."""
    items = folder / "items_shuffle.json"
    shop.cached(folder)
    before = items.stat()
    items.write_text(items.read_text().replace("Shoe", "Boot"), encoding="utf-8")
    os.utime(items, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert items.stat().st_size == before.st_size
    assert shop.cached(folder).product(0).title == "Red Boot"
    copied = shutil.copytree(folder, tmp_path / "copy")
    shop.cached(copied)
    assert len(list((tmp_path / "cache" / "atod_jax" / "webshop").iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "flip", "delete", "empty", "manifest"])
def test_a_damaged_cache_is_built_again(folder, tmp_path, capsys, damage):
    whole = shop.cached(folder)
    (place,) = (tmp_path / "cache" / "atod_jax" / "webshop").iterdir()
    files = [p for p in place.iterdir() if (p.name == "SHA256SUMS") == (damage == "manifest")]
    for path in files:
        content = path.read_bytes()
        flipped = content[:-1] + bytes([content[-1] ^ 1])
        path.unlink()
        if damage != "delete":
            path.write_bytes({"cut": content[:-1], "empty": b""}.get(damage, flipped))
        again = shop.cached(folder)
        assert (again.search("shoe"), again.goal(1)) == (whole.search("shoe"), whole.goal(1))
        (said,) = capsys.readouterr().err.splitlines()
        assert said.startswith(f"shop: {place} is damaged (")
    shop.cached(folder)
    assert capsys.readouterr().err == ""
    assert [p.name for p in place.parent.iterdir()] == [place.name]


def test_changed_files_make_another_shop(folder):
    assert len(shop.cached(folder)) == 1
    rows = [ROW, ROW | {"asin": "B2"}]
    (folder / "items_shuffle.json").write_text(json.dumps(rows), encoding="utf-8")
    assert len(shop.cached(folder)) == 2


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".json.gz", ".jsonl.gz"])
def test_arrays_and_lines_plain_and_packed(tmp_path, ending, monkeypatch):
    monkeypatch.setattr(catalogue, "_BLOCK", 50)  # many reads
    rows = [ROW | {"asin": f"B{n}"} for n in range(5)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    text = lines if "jsonl" in ending else json.dumps(rows, indent=1)
    path = tmp_path / f"products{ending}"
    path.write_bytes(gzip.compress(text.encode()) if ending.endswith("gz") else text.encode())
    assert list(catalogue.read_rows(path)) == rows


def _cut_gzip(folder):
    data = gzip.compress(json.dumps([ROW] * 50).encode())
    (folder / "items_shuffle.json").unlink()
    (folder / "items_shuffle.json.gz").write_bytes(data[: len(data) // 2])


def _flawed_gzip(folder):
    data = bytearray(gzip.compress(json.dumps([ROW] * 50).encode()))
    data[20] ^= 0xFF
    (folder / "items_shuffle.json").unlink()
    (folder / "items_shuffle.json.gz").write_bytes(data)


def _write(name: str, content: str | bytes):
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(data)


DAMAGE = {
    "cut off": (
        _write("items_shuffle.json", json.dumps([ROW, ROW], indent=1)[:-200]),
        r"items_shuffle\.json:\d+: not a product",
    ),
    "line two": (
        _write("items_shuffle.json", json.dumps(ROW) + "\n{oops}\n"),
        r"items_shuffle\.json:2: not a product",
    ),
    "numbers": (_write("items_shuffle.json", "[1, 2]"), r"items_shuffle\.json:1: expected an obj"),
    "packed and cut off": (_cut_gzip, r"items_shuffle\.json\.gz: cannot be read after line 1"),
    "not UTF-8": (_write("items_shuffle.json", b'[{"asin": "\xff"}]'), r"cannot be read after"),
    "no title": (_write("items_shuffle.json", '[{"asin": "B7"}]'), "product 1 has no 'small_desc"),
    "odd value": (
        _write("items_shuffle.json", json.dumps([ROW, ROW | {"asin": "B2", "query": 3}])),
        r"items_shuffle\.json: product 2 is malformed",
    ),
    "instructions": (_write("items_ins_v2.json", "{\n]"), r"items_ins_v2\.json:2: not JSON"),
    "instructions as list": (_write("items_ins_v2.json", "[]"), r"items_ins_v2\.json: expected"),
    "instructions not UTF-8": (_write("items_ins_v2.json", b'"\xff"'), "items_ins_v2.*be read"),
    "no requests": (_write("items_ins_v2.json", "{}"), "no product has a request"),
    "packed with a flaw": (_flawed_gzip, r"items_shuffle\.json\.gz: cannot be read .*copy"),
    "nested": (_write("items_shuffle.json", "[" * 10 + '{"a":' * 99_999), r":1: not a product"),
    "instructions nested": (_write("items_ins_v2.json", "[" * 99_999), "nested too deeply"),
    "a long number": (_write("items_shuffle.json", '{"a": ' + "9" * 9999 + "}"), ":1: not a prod"),
    "too many goals": (
        _write(
            "items_shuffle.json",
            json.dumps(
                [
                    ROW
                    | {
                        "customization_options": {
                            f"o{n}": [{"value": str(v)} for v in range(10)] for n in range(9)
                        }
                    }
                ]
            ),
        ),
        "data: product B1: its options make 1000000000 goals; remove some",
    ),
    "instructions of another kind": (
        _write("items_ins_v2.json", '{"B1": {"attributes": "soft"}}'),
        "product 1 is malformed: its instructions: attributes='soft': expected a list",
    ),
    "two catalogues": (_write("products.jsonl", ""), "several files of products: items.*leave one"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_files_are_named(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=message):
        shop.cached(folder)
    assert not list(folder.parent.rglob("*.npy"))  # no half-written index


@pytest.mark.parametrize(
    ("tag", "prices"),
    [
        ("$1,299.00", (1299.0,)), ("$5.50", (5.5,)), ("$5 to $9.50", (5.0, 9.5)),
        ("$5.50 - $7", (5.5, 7.0)), ("12.99", (12.99,)), ("12.99 USD", (12.99,)), ("$.99", (0.99,)),
        ("1.299,00", (1299.0,)), ("12,99", (12.99,)), ("$1,299", (1299.0,)), ("5 to 7", (5.0, 7.0)),
        ("$5.00/Ounce.", (5.0,)), (7, (7.0,)), (0, (0.0,)), (12.5, (12.5,)), ("", (100.0,)),
        (None, (100.0,)),
    ],
)  # fmt: skip
def test_prices_as_people_write_them(tag, prices):
    assert one_product(pricing=tag).prices == prices


@pytest.mark.parametrize(
    "tag", ["free", "$", "$5 to $", -1, True, float("nan"), float("inf"), "$" + "9" * 400, ["$5"]]
)
def test_what_is_no_price_is_refused(tag):
    with pytest.raises(ValueError, match=r"test: product 1 is malformed: (a price of|pricing=)"):
        one_product(pricing=tag)


def test_null_texts_are_empty_ones():
    keys = ("name", "full_description", "small_description", "query", "product_category")
    product = one_product(**dict.fromkeys(keys), category=None, customization_options=None)
    assert (product.title, product.bullets, product.category) == ("", ("",), "unknown")
    assert product.indexed_text.strip() == ""
    assert one_product(small_description=["a", None]).bullets == ("a",)
    assert one_product(name="half \ud83d").title == "half \ud83d"  # read_rows leaves none


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"asin": ""}, "the asin is empty"),
        ({"asin": "é"}, "expected letters and digits"),
        ({"name": 5}, r"field 'name' is int \(5\); expected text"),
        ({"customization_options": ["a"]}, r"customization_options=\['a'\]: expected an object"),
        ({"customization_options": {"Size": "a"}}, "Size='a': expected a list of objects"),
        ({"customization_options": {"Size": [{"value": 3}]}}, "field 'value' is int"),
        ({"small_description": {"a": 1}}, "field 'small_description' is dict"),
    ],
)
def test_odd_values_are_named(change, message):
    with pytest.raises(ValueError, match=f"test: product 1 is malformed: .*{message}"):
        one_product(**change)


def test_marks_blank_lines_and_half_pairs_are_no_damage(tmp_path):
    path = tmp_path / "products.jsonl"
    lines = [json.dumps(ROW), "", "  ", json.dumps(ROW | {"asin": "B2", "name": "a\ud83d"})]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    first, second = catalogue.read_rows(path)
    assert (first, second["name"]) == (ROW, "a\ufffd")


@pytest.mark.parametrize("name", ["items_shuffle.json", "items_ins_v2.json"])
def test_missing_files_are_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name[:9]):
        shop.cached(folder)
    with pytest.raises(FileNotFoundError, match=r"set env\.webshop\.data"):
        shop.cached(folder / "nowhere")
