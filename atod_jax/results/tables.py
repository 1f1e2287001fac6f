"""Markdown tables, and results as they stand in them."""

import re
from collections.abc import Sequence

from atod_jax.results.intervals import Interval
from atod_jax.texts import one_line

_LONGEST = 5000  # characters of a cell
_HTML = re.compile(r"<(?=[A-Za-z/!?])")


def markdown_table(
    header: Sequence[object], rows: Sequence[Sequence[object]], *, padded: bool = False
) -> str:
    """A Markdown table whose first column is text and the others numbers.

    Args:
      header: names of the columns.
      rows: one cell per column.
      padded: for a terminal: all columns as wide as their widest cell, aligned on the left.

    Raises:
      ValueError: a row has another number of cells.
    """
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise ValueError(f"row {number} has {len(row)} cells for {len(header)} columns")
    lines = [[cell_text(cell) for cell in line] for line in (header, *rows)]
    rule = ["---", *["---:"] * (len(header) - 1)]
    if padded:
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        lines = [[c.ljust(w) for c, w in zip(line, widths, strict=True)] for line in lines]
        return "\n".join([_line(lines[0]), _rule(widths), *map(_line, lines[1:])])
    return "\n".join(map(_line, [lines[0], rule, *lines[1:]]))


def padded_table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table for a terminal."""
    return markdown_table(header, rows, padded=True)


def percent(interval: Interval) -> str:
    """A share as "12.3 [10.0, 15.0]", in percent."""
    value, low, high = (100 * x for x in (interval.value, interval.low, interval.high))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def points(interval: Interval) -> str:
    """A difference of shares as "+1.2 [-0.5, +2.9]", in percentage points."""
    value, low, high = (100 * x for x in (interval.value, interval.low, interval.high))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def cell_text(value: object) -> str:
    """Any text as Markdown of one line that is no HTML and nothing a terminal obeys."""
    text = one_line(str(value), longest=_LONGEST).replace("|", "\\|")
    return _HTML.sub(r"\\<", text)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _rule(widths: Sequence[int]) -> str:
    return "|" + "|".join("-" * (width + 2) for width in widths) + "|"
