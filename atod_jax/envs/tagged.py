"""The paper template: past turns as text, and responses with `<think>…</think>` and
`<action>…</action>`, written and read back."""

import re
from collections.abc import Callable, Sequence

from atod_jax.envs.base import Episode, Projection

_OPEN, _CLOSE = "<think>", "</think>"
_CJK = re.compile("[\u4e00-\u9fff]")


def project(response: str, commands: Sequence[str], *, fallback: int) -> Projection:
    """Lower-cased text between the first action tags; membership in `commands` is not checked.

    Invalid without both action tags (then the last `fallback` characters are sent), without both
    think tags (case-sensitive), or with a character in U+4E00..U+9FFF.
    """
    text = response.lower()
    start, end = text.find("<action>"), text.find("</action>")
    if start < 0 or end < 0:
        unclosed = _OPEN in response and _CLOSE not in response
        problem = "thinking never closed" if unclosed else "no action tags"
        return Projection(text[-fallback:], False, problem)
    command = text[start + len("<action>") : end].strip()
    if not (_OPEN in response and _CLOSE in response):
        return Projection(command, False, "no thinking tags")
    chinese = bool(_CJK.search(response))
    return Projection(command, not chinese, "Chinese characters" * chinese)


def without_quotes(response: str) -> str:
    """The response, with the tags inside its thinking made plain text.

    Thinking is all before the last `</think>`, and all behind a `<think>` that nothing closes: what
    it quotes is no action.
    """
    thought, closed, answer = response.rpartition(_CLOSE)
    answer, opened, unfinished = answer.partition(_OPEN)
    before, began, inside = thought.partition(_OPEN)
    thinking = _untagged(before) + began + _untagged(inside) + closed
    return thinking + answer + opened + _untagged(unfinished)


def _untagged(text: str) -> str:
    return text.replace("<", " ").replace(">", " ")


def respond(command: str, thought: str) -> str:
    """A response with both tags; the think block stays even when the thought is empty."""
    return f"<think>{thought}</think>\n<action>{command}</action>"


def past_lines(
    episode: Episode, history: int, *, show: Callable[[str], str] = lambda text: text
) -> tuple[str, str]:
    """(the last `history` turns, observations as `show` prints them; which step it is)."""
    steps = len(episode.past)
    first = max(0, steps - history)
    entries = "\n".join(
        f"[Observation {n}: '{show(text)}', Action {n}: '{command}']"
        for n, (text, command) in enumerate(episode.past[first:], start=first + 1)
    )
    taken = (
        f"You have taken {steps} step(s) so far. The latest {steps - first} observation(s), each"
        f" with the action you answered it with: {entries}"
    )
    return taken, f"This is step {steps + 1}."
