"""Responses with `<think>…</think>` and `<action>…</action>`, written and read back."""

import re
from collections.abc import Sequence

from atod_jax.envs.base import Projection

_CJK = re.compile("[\u4e00-\u9fff]")


def project(response: str, commands: Sequence[str], *, fallback: int) -> Projection:
    """Lower-cased text between the first action tags; membership in `commands` is not checked.

    Invalid without both action tags (then the last `fallback` characters are sent), without both
    think tags (case-sensitive), or with a character in U+4E00..U+9FFF.
    """
    text = response.lower()
    start, end = text.find("<action>"), text.find("</action>")
    if start < 0 or end < 0:
        return Projection(text[-fallback:], False)
    thinks = "<think>" in response and "</think>" in response
    command = text[start + len("<action>") : end].strip()
    return Projection(command, thinks and not _CJK.search(response))


def respond(command: str, thought: str) -> str:
    """A response with both tags; the think block stays even when the thought is empty."""
    return f"<think>{thought}</think>\n<action>{command}</action>"
