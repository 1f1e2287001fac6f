"""Texts of environments, data and models, made harmless for those who read them.

Such a text may hold anything: half of a surrogate pair, which no file can store; escape sequences,
which a terminal carries out; marks that turn lines around; and it may be of any length.
"""

import re

SHOWN = 20_000  # characters of one text that people are shown
_SURROGATE = re.compile("[\ud800-\udfff]")
# control characters of ASCII and Latin-1 but for tab, line feed and carriage return
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
# what a terminal or an editor obeys: those, carriage returns, marks of direction and of lines
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def whole(text: str) -> str:
    """The text with U+FFFD in place of lone surrogates, so that it can be stored."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def plain(text: str) -> str:
    """The text without control characters and lone surrogates: for a prompt."""
    return _CONTROL.sub("", whole(text))


def visible(text: str, *, longest: int = SHOWN) -> str:
    r"""The beginning of the text, with `\x1b` and the like in place of what would be obeyed: for
    people. Line feeds and tabs stay."""
    cut = f" … ({len(text) - longest} more characters)" if len(text) > longest else ""
    shown = whole(text[:longest].replace("\r\n", "\n"))
    return _OBEYED.sub(lambda match: ascii(match[0])[1:-1], shown) + cut


def one_line(text: str, *, longest: int = 500) -> str:
    """The same in a single line."""
    return visible(text.replace("\r\n", " ").replace("\n", " "), longest=longest)
