"""The paper template: past turns as text, and responses with `<think>…</think>` and
`<action>…</action>`, written and read back."""

import re
from collections.abc import Callable, Sequence

from atod_jax.envs.base import Episode, Projection

_OPEN, _CLOSE = "<think>", "</think>"
_THOUGHT_OPEN, _THOUGHT_CLOSE = (re.compile(tag, re.IGNORECASE) for tag in (_OPEN, _CLOSE))
_CJK = re.compile("[\u4e00-\u9fff]")
MAX_COMMAND_CHARS = 1000  # bounds what a garbled answer adds to later prompts


def project(response: str, commands: Sequence[str], *, fallback: int) -> Projection:
    """Lower-cased text between the first action tags; membership in `commands` is not checked.

    Invalid without both action tags in their order (then the last `fallback` characters are sent),
    without both think tags in theirs (case-sensitive), or with a character in U+4E00..U+9FFF.
    """
    text = response.lower()
    start, end = text.find("<action>"), text.find("</action>")
    if start < 0 or end < 0:
        unclosed = _OPEN in response and _CLOSE not in response
        problem = "thinking never closed" if unclosed else "no action tags"
        return Projection(text[-fallback:], False, problem)
    if end < start:
        return Projection(text[-fallback:], False, "action tags in the wrong order")
    command = text[start + len("<action>") : end].strip()[:MAX_COMMAND_CHARS].rstrip()
    if not 0 <= response.find(_OPEN) < response.rfind(_CLOSE):
        return Projection(command, False, "no thinking tags")
    chinese = bool(_CJK.search(response))
    return Projection(command, not chinese, "Chinese characters" * chinese)


def without_quotes(response: str) -> str:
    """The response, with the tags inside its thinking made plain text.

    Thinking is all before the last `</think>`, and all behind a `<think>` that nothing closes: what
    it quotes is no action.
    """
    ends = [match.end() for match in _THOUGHT_CLOSE.finditer(response)]
    thought, answer = (response[: ends[-1]], response[ends[-1] :]) if ends else ("", response)
    unclosed = _THOUGHT_OPEN.search(answer)
    spoken = answer[: unclosed.start()] if unclosed else answer
    return _untagged(thought) + spoken + _untagged(answer[len(spoken) :])


def _untagged(thinking: str) -> str:
    """Thinking in which its first opening and its last closing tag are the only ones."""
    opened = _THOUGHT_OPEN.search(thinking)
    ended = thinking[-len(_CLOSE) :] if _THOUGHT_CLOSE.fullmatch(thinking[-len(_CLOSE) :]) else ""
    first = opened.span() if opened else (0, 0)
    inside = thinking[first[1] : len(thinking) - len(ended)]
    return _plain(thinking[: first[0]]) + thinking[slice(*first)] + _plain(inside) + ended


def _plain(text: str) -> str:
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
