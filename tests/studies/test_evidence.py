"""Intervals over tasks and over seeds, against values worked out by hand and by simulation."""

import math

import numpy as np
import pytest

from atod_jax.studies.evidence import detectable, difference, over_seeds, share


def test_a_t_interval_over_three_seeds():
    """Mean 0.5, sd 0.1, t_0.975 with 2 degrees of freedom 4.302653."""
    found = over_seeds([0.4, 0.5, 0.6])
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert found.value == pytest.approx(0.5)
    assert (found.low, found.high) == (
        pytest.approx(0.5 - half, abs=1e-6),
        pytest.approx(0.5 + half, abs=1e-6),
    )
    assert math.isinf(over_seeds([0.4]).high)


def test_differences_are_paired_by_seed_and_task():
    """Every seed adds ten tasks of a hundred to the same side, whatever its level: over seeds
    there is no doubt, over tasks there is."""
    rng = np.random.default_rng(0)
    second = [rng.random(100) < level for level in (0.2, 0.5, 0.8)]
    first = [x.copy() for x in second]
    for x in first:
        x[np.flatnonzero(~x)[:10]] = True
    found = difference(first, second)
    assert found.per_seed == pytest.approx((0.1, 0.1, 0.1))
    assert (found.seeds.low, found.seeds.high) == pytest.approx((0.1, 0.1))
    assert found.tasks.low < 0.1 < found.tasks.high
    with pytest.raises(ValueError, match="zip"):
        difference(first, second[:2])


def test_shares_keep_both_kinds_of_doubt_apart():
    found = share([np.arange(100) < solved for solved in (40, 60)])
    assert found.value == pytest.approx(0.5)
    assert found.seeds.high - found.seeds.low > 1  # two seeds say next to nothing
    assert found.tasks.high - found.tasks.low < 0.2


def test_what_can_be_seen_is_seen_four_times_in_five():
    """The power of a paired t test at the size that `detectable` names, by simulation."""
    rng, seeds, spread = np.random.default_rng(0), 8, 4.0
    size = detectable(spread, seeds)
    draws = rng.normal(size, spread, (20_000, seeds))
    t = draws.mean(axis=1) / (draws.std(axis=1, ddof=1) / math.sqrt(seeds))
    assert np.mean(np.abs(t) > 2.364624) == pytest.approx(0.8, abs=0.02)
    assert detectable(spread, 50) < 2 < size < detectable(spread, 3)
    assert math.isinf(detectable(spread, 1))
