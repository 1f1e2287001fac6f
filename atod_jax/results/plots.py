"""What pictures of success over training have in common: axes, colours, dashes."""

from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's colours for all kinds of colour vision, their pale yellow replaced by a plum.
COLOURS = (
    "#0b5fa5", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7b1e5c", "#000000",
)  # fmt: skip
DASHES = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (7, 2, 1.5, 2)))
LEVEL_COLOUR, LEVEL_DASHES = "0.4", ((0, (5, 3)), (0, (1, 1.5)), (0, (9, 3)), (0, (4, 2, 1, 2)))


class Style(NamedTuple):
    """How a line looks."""

    colour: str
    dashes: str | tuple[float, tuple[float, ...]]


def line_style(number: int) -> Style:
    """A look of its own for each of 32 lines: colours first, then dashes."""
    return Style(COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)])


def level_style(number: int) -> Style:
    """The look of a level, such as a teacher's: grey, by its dashes."""
    return Style(LEVEL_COLOUR, LEVEL_DASHES[number % len(LEVEL_DASHES)])


def success_figure(what: str, height: float = 4.6) -> tuple[Figure, Axes]:
    """An empty figure of percent over training steps; `what` names the percent."""
    figure = Figure(figsize=(7.2, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_xlabel("training step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(what)
    axes.set_ylim(0, 100)
    axes.grid(axis="y", color="0.88", lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure: Figure, path: Path) -> None:
    """Writes the picture as PNG."""
    figure.savefig(path, dpi=160)
