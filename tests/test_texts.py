"""Hostile texts: what prompts, files and terminals get of them."""

import pytest

from atod_jax.results.tables import cell_text
from atod_jax.texts import one_line, plain, visible, whole

SCREEN = "\x1b[2J\x1b]0;owned\x07\x9b31mred\x00"


@pytest.mark.parametrize(
    ("text", "in_prompts", "shown"),
    [
        (SCREEN, "[2J]0;owned31mred", r"\x1b[2J\x1b]0;owned\x07\x9b31mred\x00"),
        ("a\tb\nc", "a\tb\nc", "a\tb\nc"),
        ("a\r\nb\rc", "a\r\nb\rc", "a\nb\\rc"),  # a bare one would overwrite the line
        ("half \ud83d pair", "half \ufffd pair", "half \ufffd pair"),
        ("pay\u202ecod.exe", "pay\u202ecod.exe", r"pay\u202ecod.exe"),
        ("ünï 中文 😀", "ünï 中文 😀", "ünï 中文 😀"),
        ("two\u2028lines\x85", "two\u2028lines", r"two\u2028lines\x85"),
    ],
)
def test_nothing_is_obeyed(text, in_prompts, shown):
    assert plain(text) == in_prompts
    assert visible(text) == shown
    assert whole(text).encode()


def test_long_texts_are_shown_in_part():
    assert visible("x" * 200_000, longest=3) == "xxx … (199997 more characters)"
    assert one_line("a\nb\r\nc", longest=5) == "a b c"
    assert one_line("a\nb c d", longest=5) == "a b c … (2 more characters)"


def test_a_table_holds_no_html_and_no_lines_of_others():
    assert cell_text("<script>x</script>|\n| 99 |") == r"\<script>x\</script>\| \| 99 \|"
    assert cell_text("a < b <= 3") == "a < b <= 3"
    assert cell_text(SCREEN) == r"\x1b[2J\x1b]0;owned\x07\x9b31mred\x00"
