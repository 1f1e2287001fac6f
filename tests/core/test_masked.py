"""Reductions over masks and segments."""

import golden_reports
import jax.numpy as jnp
import numpy as np
import pytest

from atod_jax.core import masked

X = jnp.array([1.0, 2.0, 4.0, 8.0, 100.0])
IDS = jnp.array([1, 0, 1, 1, 3])  # three segments, the last empty; one padding row


def test_values_outside_the_mask_do_not_matter():
    mask = jnp.array([True, False, True, False, False])
    x = X.at[1].set(jnp.nan)
    assert float(masked.masked_sum(x, mask)) == 5.0
    assert masked.masked_mean(x, mask).value() == 2.5
    assert np.isnan(masked.masked_mean(x, jnp.zeros(5, bool)).value())


def test_row_mean_of_an_empty_row_is_zero():
    x = jnp.array([[1.0, 3.0], [5.0, 7.0]])
    mask = jnp.array([[True, True], [False, False]])
    np.testing.assert_array_equal(masked.row_mean(x, mask), [2.0, 0.0])


def test_padding_rows_and_empty_segments():
    np.testing.assert_array_equal(masked.segment_sum(X, IDS, num=3), [2.0, 13.0, 0.0])
    np.testing.assert_array_equal(masked.segment_count(IDS, num=3), [1.0, 3.0, 0.0])
    np.testing.assert_allclose(masked.segment_mean(X, IDS, num=3), [2.0, 13 / 3, 0.0], rtol=1e-6)
    np.testing.assert_array_equal(masked.segment_min(X, IDS, num=3)[:2], [2.0, 1.0])
    np.testing.assert_array_equal(masked.segment_max(X, IDS, num=3)[:2], [2.0, 8.0])
    spread = masked.spread(jnp.array([7.0, 8.0, 9.0]), IDS, fill=-1.0)
    np.testing.assert_array_equal(spread, [8.0, 7.0, 8.0, 8.0, -1.0])


def test_std_is_the_unbiased_one():
    std = masked.segment_std(X, IDS, num=3)
    np.testing.assert_allclose(std, [0.0, np.std([1, 4, 8], ddof=1), 0.0], rtol=1e-6)


@pytest.mark.parametrize("value", [9.9, 0.99, -0.1, 1e6 + 0.1])
@pytest.mark.parametrize("size", [3, 8, 127])
def test_equal_values_have_exactly_no_deviation(value, size):
    x, ids = jnp.full(size, value), jnp.zeros(size, int)
    assert not np.any(masked.segment_centre(x, ids, samples=ids, num=1))
    assert not np.any(masked.segment_std(x, ids, num=1))


def test_runs_are_half_open_and_padded():
    mask = jnp.array([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0], [1, 0, 1, 0, 1]], dtype=bool)
    start, end, count = golden_reports.runs(mask, limit=3)
    np.testing.assert_array_equal(start, [[0, 3, -1], [-1, -1, -1], [0, 2, 4]])
    np.testing.assert_array_equal(end, [[2, 4, -1], [-1, -1, -1], [1, 3, 5]])
    np.testing.assert_array_equal(count, [2, 0, 3])
