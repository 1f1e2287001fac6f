"""Finds `<kind>...</kind>` blocks in what a model wrote."""

import re


def blocks(kind: str, text: str, *, flags: int = 0) -> list[str]:
    """The insides of all whole blocks of a kind, in order, each up to the next closing tag.

    Text after the last closing tag is left out of the search, which makes it linear: thousands of
    opening tags that nobody closes would each be followed to the end otherwise.
    """
    *_, end = (0, *(match.end() for match in re.finditer(f"</{kind}>", text, flags)))
    whole = re.compile(f"<{kind}>(.*?)</{kind}>", flags | re.DOTALL)
    return whole.findall(text, 0, end)
