"""An episode as a picture: its turns one below the other, every token coloured by what is made of
it.

For places that show no page of our own, such as a report, a notebook or a paper. Colours and marks
are those of the page.
"""

import functools
import itertools
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from atod_jax.texts import one_line, visible

WIDTH, HEIGHT = 88, 240  # of the text: characters in a line, lines
SEEN, SAID = 6, 12  # lines of an observation and of a response, at most
LEFT, RIGHT = 4, 20  # characters of the margins: number of the turn; d, h, w
FONT, POINTS = "DejaVu Sans Mono", 9.0  # comes with matplotlib
CELL = 0.60205 * POINTS / 72, 1.5 * POINTS / 72  # inches of one character
UP, DOWN, SOFT, FAINT = "#0b5fa5", "#c04a00", "#5b6570", "#e3e7eb"
DPI = 110  # where it is shown as it is, as in notebooks
PALE = 0.02  # share of the scale below which a token has no mark
BOX = "\u25a1"  # in place of a character that the font lacks
ADVANTAGE, GAP = "advantage", "gap log p_teacher - log p_student"


class Run(NamedTuple):
    """Characters next to each other in one line that look alike."""

    column: int
    text: str
    share: float = 0.0  # of the scale, -1 to 1
    colour: str = "black"


Line = Sequence[Run]


class Block(NamedTuple):
    """A turn."""

    left: str
    lines: Sequence[Line]
    said: int  # the line where the response begins
    right: str


def draw_episode(record: Mapping[str, Any]) -> Figure:
    """Draws one record of `transcripts/STEP-train.jsonl` or `-eval.jsonl`, to be saved or shown.

    What was seen is grey, long texts and episodes are cut. The tokens of a response are coloured by
    their advantage, or by the teacher's gap where no turn has advantages: blue and underlined for
    more of this, orange and dotted for less, and the stronger the nearer to the 95th percentile of
    the episode. The margin has d, h (nats per token) and w of every turn, where they are known.
    """
    name, values = _values(record["turns"])
    sizes = [abs(v) for of_turn in values for v in of_turn if v is not None]
    scale = float(np.quantile(sizes, 0.95)) if sizes else 0.0
    blocks, rows = [], 0
    for number, (turn, of_turn) in enumerate(zip(record["turns"], values, strict=True), 1):
        block = _block(number, turn, [v and v / (scale or 1.0) for v in of_turn])
        rows += len(block.lines) + 1
        if rows > HEIGHT:
            break
        blocks.append(block)
    cut = len(record["turns"]) - len(blocks)
    return _draw(_head(record), _legend(name if sizes else ""), blocks, cut=cut)


def _values(turns: Sequence[Mapping[str, Any]]) -> tuple[str, list[list[float | None]]]:
    """What tokens are coloured by, and its value for the tokens of every turn, where known."""
    streams = [turn.get("streams", {}) for turn in turns]
    if any(of_turn.get("advantage") for of_turn in streams):
        return ADVANTAGE, [of_turn.get("advantage", []) for of_turn in streams]
    pairs = [zip(s.get("teacher", []), s.get("student", []), strict=False) for s in streams]
    return GAP, [[None if None in pair else pair[0] - pair[1] for pair in p] for p in pairs]


# -------------------------------------------------------------------------------------------- words


def _head(record: Mapping[str, Any]) -> str:
    solved = "solved" if record.get("success") else "not solved"
    task = one_line(str(record.get("task", "")), longest=WIDTH // 2)
    return _drawable(f"{task}: {solved} after {len(record['turns'])} turns")


def _legend(name: str) -> Line:
    if not name:
        return [Run(0, "nothing is known of its tokens", colour=SOFT)]
    words = (f"tokens by {name}:  ", 0.0), (" more ", 1.0), ("  ", 0.0), (" less ", -1.0)
    return next(_set(words))


def _block(number: int, turn: Mapping[str, Any], shares: Sequence[float | None]) -> Block:
    seen = [[Run(0, text, colour=SOFT)] for text in _seen(str(turn.get("observation", "")))]
    pieces = turn.get("pieces") or [str(turn.get("response") or turn.get("command", ""))]
    shares = shares if turn.get("pieces") else []
    words = ((p, s or 0.0) for p, s in zip(pieces, [*shares, *[None] * len(pieces)], strict=False))
    said = list(itertools.islice(_set(words), SAID + 1))
    if len(said) > SAID:
        said = [*said[: SAID - 1], [Run(0, "…", colour=SOFT)]]
    problem = turn.get("problem") or ("" if turn.get("valid", True) else "not valid")
    notes = filter(None, (problem, "replayed for the student" if turn.get("replayed") else ""))
    after = [
        [Run(2, _drawable(one_line(str(note), longest=WIDTH // 2)), colour=DOWN)] for note in notes
    ]
    numbers = (turn.get(name) for name in "dhw")
    right = "".join("      " if n is None else f"{n:6.2f}" for n in numbers)
    return Block(str(number), [*seen, *said, *after], len(seen), right)


def _seen(text: str) -> list[str]:
    """An observation in lines, its middle left out where it is long: tasks stand at the end."""
    lines = _drawable(visible(text)).splitlines()
    wrapped = [part for line in lines for part in textwrap.wrap(line, WIDTH)]
    return wrapped if len(wrapped) <= SEEN else [*wrapped[: SEEN - 2], "…", wrapped[-1]]


def _set(words: Iterable[tuple[str, float]]) -> Iterator[Line]:
    """Pieces with their shares in lines, broken between pieces where there is room for that."""
    line: list[Run] = []
    column = 0
    for piece, share in words:
        parts = _drawable(visible(piece)).replace("\n", "↵\n").split("\n")
        for k, part in enumerate(parts):
            if k or (column and column + len(part) > WIDTH):
                yield line
                line, column = [], 0
            for start in range(0, len(part), WIDTH):
                if start:
                    yield line
                    line, column = [], 0
                text = part[start : start + WIDTH]
                line.append(Run(column, text, share))
                column += len(text)
    yield line


def _drawable(text: str) -> str:
    """The text with what the font has; line feeds stay, tabs become spaces."""
    there = _characters()
    return "".join(c if ord(c) in there or c == "\n" else BOX for c in text.replace("\t", "    "))


@functools.cache
def _characters() -> frozenset[int]:
    return frozenset(font_manager.get_font(font_manager.findfont(FONT)).get_charmap())


# ---------------------------------------------------------------------------------------- the paper


def _draw(head: str, legend: Line, blocks: Sequence[Block], *, cut: int) -> Figure:
    rows = 3 + sum(len(block.lines) + 1 for block in blocks) + bool(cut)
    columns = LEFT + WIDTH + RIGHT
    figure = Figure(figsize=(columns * CELL[0], rows * CELL[1]), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(-LEFT, WIDTH + RIGHT)
    axes.set_ylim(rows, 0)
    _write(axes, 0, head, row=0.5, weight="bold")
    _draw_line(axes, legend, 1.5)
    _write(axes, WIDTH + 1, "".join(f"{name:>6}" for name in "dhw"), row=1.5, color=SOFT)
    row = 2.5
    for block in blocks:
        axes.plot([-LEFT + 1, WIDTH + RIGHT - 1], [row, row], color=FAINT, lw=1)
        _write(axes, -LEFT + 1, block.left, row=row + 0.5, color=SOFT)
        _write(axes, WIDTH + 1, block.right, row=row + 0.5 + block.said)
        for k, line in enumerate(block.lines):
            _draw_line(axes, line, row + 0.5 + k)
        row += len(block.lines) + 1
    if cut:
        _write(axes, 0, f"… {cut} more turns", row=row, color=SOFT)
    return figure


def _draw_line(axes: Axes, line: Line, row: float) -> None:
    for run in line:
        share = float(np.clip(run.share, -1, 1))
        if abs(share) >= PALE:
            colour, dashes = (UP, "-") if share > 0 else (DOWN, (0, (1, 1.2)))
            place, width = (run.column, row), len(run.text)
            axes.add_patch(
                Rectangle(place, width, 1, facecolor=colour, alpha=0.45 * abs(share), lw=0)
            )
            ends = [run.column + 0.12, run.column + width - 0.12]
            axes.plot(ends, [row + 0.93] * 2, color=colour, ls=dashes, lw=1.4)
        _write(axes, run.column, run.text, row=row, color=run.colour)


def _write(axes: Axes, column: float, text: str, *, row: float, **look: Any) -> None:
    """Text as it is, without formulas, on the baseline of a row."""
    axes.text(
        column, row + 0.72, text, family=FONT, size=POINTS, va="baseline", parse_math=False,
        usetex=False, **look,
    )  # fmt: skip
