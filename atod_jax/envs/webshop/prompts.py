"""How a visit to the shop is shown to a model, and how its answer becomes a command."""

import functools
import re
from collections.abc import Sequence

from atod_jax.envs import tagged
from atod_jax.envs.base import Episode, Observation, Projection, Template
from atod_jax.envs.webshop.pages import SEPARATOR
from atod_jax.envs.webshop.view import Offer, View, make_view, read_task

# --------------------------------------------------------------------------------- compact template

MAX_COMMAND_CHARS = 120  # bounds what a garbled answer adds to later prompts
_TITLE_CHARS = 80
_FAILED_CHARS = 30
_SHORT = re.compile(r"(search|click) (.+)")


def compact_prompt(episode: Episode, history: int) -> str:
    """The terse prompt: the wish, the open page, and what was just clicked in vain (without that a
    policy that is sure of its click repeats it to the end); `history` is not needed.

    Raises:
      ValueError: the first observation states no goal.
    """
    view = make_view(episode)
    wish = "".join(f" {name} {value}" for name, value in view.wish.options)
    limit = f" under {view.wish.limit:.0f}" if view.wish.limit < float("inf") else ""
    lines = [f"want: {view.wish.request}", f"as:{wish}{limit}", *_page_lines(view)]
    return "\n".join([*lines, *([f"no: {view.failed[:_FAILED_CHARS]}"] if view.failed else [])])


def _page_lines(view: View) -> list[str]:
    if view.kind == "results":
        return [f"page {view.page}", *map(_offer_line, view.offers)]
    if view.kind == "item":
        offered = [f"{name}: {', '.join(values)}" for name, values in view.options]
        chosen = " ".join(value for _, value in view.chosen) or "nothing"
        item = f"item: {view.title[:_TITLE_CHARS].lower()} {view.price}"
        return [item, *offered, f"chosen: {chosen}"]
    return [view.kind]


def _offer_line(offer: Offer) -> str:
    seen = " seen" if offer.opened else ""
    return f" {offer.id} {offer.title[:_TITLE_CHARS].lower()} {offer.price}{seen}"


def compact_project(response: str, commands: Sequence[str]) -> Projection:
    """`search WORDS` or `click TEXT` after an optional think block.

    Valid iff it is a search, or a click on something that is there.
    """
    text = " ".join(response.rpartition("</think>")[2].split())[:MAX_COMMAND_CHARS].rstrip()
    match = _SHORT.fullmatch(text)
    if match is None:
        return Projection(text, False, "neither search nor click")
    command = f"{match[1]}[{match[2]}]"
    valid = match[1] == "search" or is_useful(command, commands)
    return Projection(command, valid, "" if valid else "a click on nothing")


def is_useful(click: str, commands: Sequence[str]) -> bool:
    """Whether a click does anything: the search button is listed but needs words."""
    return click in commands and click != "click[search]"


def compact_respond(command: str, thought: str) -> str:
    """`<think>thought</think>search words` or `click text`, without the block where no thought."""
    verb, _, argument = command.removesuffix("]").partition("[")
    return f"<think>{thought}</think>{verb} {argument}" if thought else f"{verb} {argument}"


# ----------------------------------------------------------------------------------- paper template

PAPER_ROLE = (
    "You act as an expert agent in WebShop, an online store where you buy what is asked for."
)
PAPER_NOW = "What you observe now: "
PAPER_ACTIONS = "Admissible actions now: ["
PAPER_INSTRUCTIONS = (
    "It is your turn now. Reason step by step about the situation first, inside <think> </think>,"
    " and weigh which action brings the purchase closest. After the reasoning, choose one of the"
    " admissible actions and write it inside <action> </action>."
)
MAX_PROMPT_CHARS = 13_000  # a longer prompt is shown without history
paper_project = functools.partial(tagged.project, fallback=20)  # characters


def paper_prompt(episode: Episode, history: int) -> str:
    """The full prompt, with the last `history` turns where there are some and they fit.

    Raises:
      ValueError: the first observation states no goal.
    """
    task = read_task(episode.opening)
    now = f"{PAPER_NOW}{shown_text(episode.current.text, task)}"
    ending = [_actions(episode.current), "", PAPER_INSTRUCTIONS]
    lead = f"{PAPER_ROLE} Your task is to: {task}"
    if history > 0 and episode.past:
        past = tagged.past_lines(episode, history, show=lambda text: shown_text(text, task))
        full = "\n".join([lead, *past, now, *ending])
        if len(full) <= MAX_PROMPT_CHARS:
            return full
    return "\n".join([lead, now, *ending])


def shown_text(text: str, task: str) -> str:
    """The fields of a page after the task, each in quotes; the whole text where it has no task."""
    fields = text.split(SEPARATOR)
    if task not in fields:
        return text
    return SEPARATOR.join(f"'{field}'" for field in fields[fields.index(task) + 1 :])


def _actions(now: Observation) -> str:
    listed = "".join(f"'{command}',\n" for command in now.commands)
    return f"{PAPER_ACTIONS}\n{listed}]."


TEMPLATES = {
    "paper": Template(paper_prompt, paper_project, tagged.respond, instructions=PAPER_INSTRUCTIONS),
    "compact": Template(compact_prompt, compact_project, compact_respond),
}
