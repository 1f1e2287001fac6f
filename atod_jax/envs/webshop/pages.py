"""The pages of the shop, as lines that know what they are, and two ways to print them."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from atod_jax.envs.webshop.catalogue import Product

PER_PAGE = 10
SEARCH, BACK, PREVIOUS, NEXT, BUY = "Search", "Back to Search", "< Prev", "Next >", "Buy Now"
SUB_PAGES = ("Description", "Features", "Reviews")
SEPARATOR = " [SEP] "


class Line(NamedTuple):
    """One visible text; `role`: text | button | link | option."""

    text: str
    role: str = "text"
    option: str = ""  # of an option value: the name of the option
    clicked: bool = False  # an option value chosen or a product seen before, for `text_rich`


Page = tuple[Line, ...]


def search_page(instruction: str) -> Page:
    """Where an episode starts: the goal and a search bar."""
    texts = (Line("WebShop"), Line("Instruction: "), Line(instruction))
    return (*texts, Line(SEARCH, "button"))


def _head(instruction: str) -> Page:
    return Line("Instruction:"), Line(instruction), Line(BACK, "button")


def results_page(
    instruction: str, shown: Sequence[Product], *, number: int, total: int, seen: Collection[str]
) -> Page:
    """Page `number` (from 1) of `total` products found; pages past the last hit show none.

    Args:
      seen: ids of the products whose pages were opened since the last start from the search page.
    """
    lines = [*_head(instruction), Line(f"Page {number} (Total results: {total})")]
    lines += [Line(PREVIOUS, "button")] if number > 1 else []
    lines.append(Line(NEXT, "button"))
    for product in shown:
        lines.append(Line(product.asin, "link", clicked=product.asin in seen))
        lines += [Line(product.title), Line(product.price_tag)]
    return _visible(lines)


def item_page(
    instruction: str, product: Product, *, chosen: Mapping[str, str], keywords: str
) -> Page:
    """A product with its options; the chosen values are marked.

    A value counts as chosen where it stands in quotes in the address of the page, which holds the
    search words and the choice as JSON: so any value in quotes there, and none that JSON escapes.
    """
    address = f"{keywords}/{json.dumps(chosen)}"
    lines = [*_head(instruction), Line(PREVIOUS, "button")]
    for name, values in product.options.items():
        lines.append(Line(name))
        lines += [Line(value, "option", name, f'"{value}"' in address) for value in values]
    lines += [Line(product.title), Line(f"Price: {product.price_tag}"), Line("Rating: N.A.")]
    lines += [Line(name, "button") for name in (*SUB_PAGES, BUY)]
    return _visible(lines)


def sub_page(instruction: str, product: Product, *, name: str) -> Page:
    """The description, the features or the (never recorded) reviews of a product."""
    bullets = [Line(f" {bullet}") for bullet in product.bullets]
    texts = {"Description": [Line(product.description)], "Features": bullets}.get(name, [])
    lines = [*_head(instruction), Line(PREVIOUS, "button"), *texts]
    return _visible(lines)


def done_page(asin: str, chosen: Mapping[str, str], *, score: float) -> Page:
    """The receipt."""
    hidden = ("attrs", "category", "query", "product category")
    lines = ["Thank you for shopping with us!", "Your code: ", "None"]
    lines += [" (Paste it in your MTurk interface.)", "Purchased", "asin", asin]
    lines += ["options", json.dumps(chosen, sort_keys=True)]
    lines += [text for name in hidden for text in (name, "None")]
    lines += ["Target", "asin", "options", "attrs", "price upper", "instuction text"]
    lines += ["category", "product category", "query", "Goal ", "None", "Reward"]
    lines += ["Your score (min 0.0, max 1.0)", str(score), "Reward Details ", "None"]
    return tuple(map(Line, lines))


def _visible(lines: Sequence[Line]) -> Page:
    return tuple(line for line in lines if line.text not in ("", "\n"))


def text(page: Page) -> str:
    """All texts in one line; a chosen option does not show."""
    return SEPARATOR.join(line.text.strip() for line in page)


def text_rich(page: Page) -> str:
    """One text a line, what can be clicked in tags, chosen option values said first."""
    chosen = [line.text for line in page if line.clicked and line.role == "option"]
    said = [f"You have clicked {value}.\n" for value in reversed(chosen)]
    return "".join([*said, *(_rich(line) + "\n" for line in page)])


def _rich(line: Line) -> str:
    if line.role == "text":
        return line.text
    tag = "clicked button" if line.clicked else "button"
    indent = {"button": "", "link": "\n", "option": "  "}[line.role]
    return f"{indent}[{tag}] {line.text} [{tag}_]"


def clickables(page: Page) -> dict[str, Line]:
    """What can be clicked, by the text to click it with: buttons, products, then option values."""
    found = {line.text.lower(): line for line in page if line.role == "button"}
    found |= {line.text.lower(): line for line in page if line.role == "link"}
    return found | {line.text: line for line in page if line.role == "option"}
