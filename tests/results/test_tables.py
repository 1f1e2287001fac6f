"""Tables for pages and for terminals."""

import pytest

from atod_jax.results.intervals import Interval
from atod_jax.results.tables import markdown_table, percent, points


def test_a_table_for_a_page_aligns_numbers_on_the_right():
    assert markdown_table(["what", "n"], [["a|b\nc", 1]]).splitlines() == [
        "| what | n |",
        "| --- | ---: |",
        "| a\\|b c | 1 |",
    ]


def test_a_table_for_a_terminal_has_columns_of_equal_width():
    table = markdown_table(["part", "bytes"], [["weights", "1 GB"], ["x", "20.5 MB"]], padded=True)
    assert table.splitlines() == [
        "| part    | bytes   |",
        "|---------|---------|",
        "| weights | 1 GB    |",
        "| x       | 20.5 MB |",
    ]


def test_a_row_must_have_a_cell_per_column():
    for padded in (True, False):
        with pytest.raises(ValueError, match="row 2 has 1 cells for 2 columns"):
            markdown_table(["a", "b"], [[1, 2], [3]], padded=padded)


def test_shares_and_differences_are_in_percent():
    assert percent(Interval(0.123, 0.1, 0.15)) == "12.3 [10.0, 15.0]"
    assert points(Interval(0.012, -0.005, 0.029)) == "+1.2 [-0.5, +2.9]"
