"""An episode as a picture: its colours say what the numbers say, and any text may be in it."""

import io

import pytest
from matplotlib.colors import to_hex
from PIL import Image

from atod_jax.results.picture import DOWN, UP, WIDTH, draw_episode


def record(*turns, **more):
    return {"task": "pick-1", "success": True, "turns": list(turns)} | more


def turn(*pieces, **more):
    return {
        "observation": "You see a shelf.", "response": "".join(pieces), "valid": True,
        "pieces": list(pieces),
    } | more  # fmt: skip


def drawn(found, dpi=40):
    """Draws the figure as it is saved; its size in pixels."""
    file = io.BytesIO()
    found.savefig(file, dpi=dpi)
    return Image.open(file).size


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def marks(figure):
    """(column, colour, opacity) behind the tokens, and the colours of solid and dotted lines below
    them, without those of the legend."""
    (axes,) = figure.axes
    behind = [(p.get_x(), to_hex(p.get_facecolor()), p.get_alpha()) for p in axes.patches[2:]]
    below = [line for line in axes.lines if line.get_color() in (UP, DOWN)][2:]
    return behind, [(line.get_color(), line.get_linestyle()) for line in below]


def test_tokens_are_coloured_by_advantage_and_turns_have_their_numbers():
    streams = {"advantage": [0.5, -1.0, None, 0.001, 1.0], "teacher": [-9.0] * 5}
    pieces = ("go", " to", " the", " shelf", " 1")
    figure = draw_episode(record(turn(*pieces, streams=streams, d=0.25, h=1.5, w=None)))
    assert drawn(figure) > (300, 50)
    behind, below = marks(figure)
    assert [mark[:2] for mark in behind] == [(0, UP), (2, DOWN), (15, UP)]  # 0.001 is none
    half, *whole = (mark[2] for mark in behind)
    assert whole == pytest.approx([2 * half] * 2, rel=0.01)  # all that is beyond the percentile
    assert below == [(UP, "-"), (DOWN, "--"), (UP, "-")]
    assert "tokens by advantage:  " in texts(figure)
    assert "  0.25  1.50      " in texts(figure)
    assert "pick-1: solved after 1 turns" in texts(figure)


def test_held_out_episodes_are_coloured_by_the_gap_and_others_not_at_all():
    gap = {"student": [-1.0, -2.0, None], "teacher": [-0.5, -4.0, -1.0]}
    figure = draw_episode(record(turn("a", "b", "c", streams=gap), {"observation": "no more"}))
    assert marks(figure)[0] == [(0, UP, pytest.approx(0.45 * 0.5 / 1.925)), (1, DOWN, 0.45)]
    assert any("log p_teacher" in text for text in texts(figure))

    replayed = {"response": "go", "command": "go", "replayed": True, "valid": False, "problem": "x"}
    figure = draw_episode(record(turn("a"), replayed))
    assert marks(figure) == ([], [])
    assert {"go", "x", "replayed for the student"} <= set(texts(figure))
    drawn(draw_episode({"turns": []}))


@pytest.mark.parametrize(
    "text",
    [
        "$x_1$ \\frac{1} $", "\x1b[31m red \u202e", "鍋を取る 🍳 ü", "\ud800", "a\n\n\tb\r\nc", "",
        "x" * 9999,
    ],
    ids=["formula", "escapes", "scripts", "surrogate", "lines", "nothing", "long"],
)  # fmt: skip
def test_any_text_can_be_drawn(text):
    """Warnings, such as those of missing characters, are errors here."""
    one = turn(text, " and ", text, observation=text, problem=text, streams={"advantage": [1, 2]})
    figure = draw_episode(record(one, task=text))
    drawn(figure)
    assert all(len(shown) <= WIDTH and "\n" not in shown for shown in texts(figure)[1:])
    assert "\x1b" not in "".join(texts(figure))


def test_long_episodes_are_cut_and_tasks_at_the_end_of_an_observation_stay():
    seen = "\n\n".join([f"line {k}" for k in range(60)] + ["Your task is to: rest."])
    figure = draw_episode(record(*[turn("word " * 20, observation=seen)] * 100))
    assert drawn(figure)[1] < 3000
    assert texts(figure).count("Your task is to: rest.") == 26
    assert texts(figure)[-1] == "… 74 more turns"
