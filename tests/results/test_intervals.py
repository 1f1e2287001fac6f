"""Intervals against published and hand-worked numbers, and against how often they hold."""

import dataclasses
import json
import math

import numpy as np
import pytest

from atod_jax.results.intervals import (
    Z95,
    EvalResult,
    Interval,
    clustered,
    clustered_mean,
    paired_difference,
    wilson,
)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe (1998), Statistics in Medicine 17:857, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_bounds(successes, trials, low, high):
    interval = wilson(successes, trials)
    assert interval.value == successes / trials
    np.testing.assert_allclose([interval.low, interval.high], [low, high], atol=5e-5)


def test_wilson_is_symmetric_and_stays_in_the_unit_interval():
    for trials in (1, 2, 7, 512):
        for successes in range(trials + 1):
            a, b = wilson(successes, trials), wilson(trials - successes, trials)
            np.testing.assert_allclose([a.low, a.high], [1 - b.high, 1 - b.low], atol=1e-12)
            assert 0 <= a.low <= a.value <= a.high <= 1
            assert a.high > a.low


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 4)])
def test_wilson_refuses_impossible_counts(successes, trials):
    with pytest.raises(ValueError, match=f"got {successes} of {trials}"):
        wilson(successes, trials)


def test_paired_difference_by_hand():
    """d = [0, 1, 1, -1, 0, 1, 0, 1]: mean 3/8; sum of squares 5, so the variance is
    (5 - 8 * 9/64) / 7 = 3.875 / 7 and the standard error sqrt(3.875 / 56) = 0.2630521."""
    first = np.array([1, 1, 1, 0, 0, 1, 1, 1], bool)
    second = np.array([1, 0, 0, 1, 0, 0, 1, 0], bool)
    interval = paired_difference(first, second)
    assert interval.value == 0.375
    half = 1.959964 * 0.2630521
    np.testing.assert_allclose(
        [interval.low, interval.high], [0.375 - half, 0.375 + half], atol=1e-6
    )
    assert not interval.excludes(0.0)
    flipped = paired_difference(second, first)
    assert (flipped.low, flipped.high) == (-interval.high, -interval.low)


def test_seeds_are_averaged_within_the_task():
    """Task means .5, 1, 0 against 0, 1, 0: d = [.5, 0, 0], mean 1/6, variance 1/12,
    standard error sqrt(1/36) = 1/6."""
    interval = paired_difference(np.array([[1, 1, 0], [0, 1, 0]]), np.array([[0, 1, 0]]))
    np.testing.assert_allclose(interval.value, 1 / 6)
    np.testing.assert_allclose(interval.high - interval.value, 1.959964 / 6, atol=1e-6)


def test_copied_seeds_add_no_certainty():
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 1, 40)) < 0.5
    once = paired_difference(first, second)
    tenfold = paired_difference(np.repeat(first, 10, axis=0), np.repeat(second, 10, axis=0))
    np.testing.assert_allclose(
        [once.value, once.low, once.high], [tenfold.value, tenfold.low, tenfold.high]
    )


@pytest.mark.parametrize("shapes", [((3,), (4,)), ((1,), (1,)), ((2, 3, 1), (3,)), ((0, 3), (3,))])
def test_paired_difference_refuses_what_is_not_paired(shapes):
    with pytest.raises(ValueError, match=r"equal tasks, got|at least 2 tasks, got 1"):
        paired_difference(np.zeros(shapes[0]), np.zeros(shapes[1]))


def test_intervals_hold_as_often_as_they_say():
    """Half the tasks gain .4, half lose .2 (truth +.1), so outcomes of one task go together.

    With 2,000 experiments the standard error of a coverage of .95 is .005. Counting every seed of a
    task as a task of its own must fall clearly short, or the test would prove nothing.
    """
    rng = np.random.default_rng(1)
    runs, seeds, tasks = 2_000, 6, 100
    hits = np.zeros(3)
    for _ in range(runs):
        before = rng.uniform(0.2, 0.6, tasks)
        after = before + rng.choice([-0.2, 0.4], size=tasks)
        first, second = (rng.random((seeds, tasks)) < chance for chance in (after, before))
        intervals = [
            paired_difference(first, second),
            paired_difference(first[0], second[0]),
            paired_difference(first.ravel(), second.ravel()),
        ]
        hits += [not interval.excludes(0.1) for interval in intervals]
    clustered, one_seed, pooled = hits / runs
    assert abs(clustered - 0.95) < 0.015
    assert abs(one_seed - 0.95) < 0.015
    assert pooled < 0.9


def test_wilson_holds_as_often_as_it_says():
    """Exact coverage at n = 60, averaged over true rates; the plain interval fails near 0."""
    trials, rates = 60, np.linspace(0.01, 0.99, 99)
    bounds = [wilson(k, trials) for k in range(trials + 1)]
    chances = [math.comb(trials, k) * rates**k * (1 - rates) ** (trials - k) for k in range(61)]
    covered = sum(
        chance * ((bound.low <= rates) & (rates <= bound.high))
        for chance, bound in zip(chances, bounds, strict=True)
    )
    assert abs(covered.mean() - 0.95) < 0.01
    assert covered.min() > 0.83


def test_tries_at_one_task_do_not_count_as_tasks():
    rng = np.random.default_rng(0)
    once = rng.random((1, 200)) < 0.3
    assert clustered(once) == wilson(int(once.sum()), 200)
    copies = clustered(np.repeat(once, 5, axis=0))
    assert copies.low == pytest.approx(clustered(once).low, abs=1e-3)
    assert copies.high == pytest.approx(clustered(once).high, abs=1e-3)
    independent = rng.random((5, 200)) < 0.3
    whole = wilson(int(independent.sum()), 1000)
    assert clustered(independent).low == pytest.approx(whole.low, abs=0.01)
    assert clustered(np.zeros((3, 50), bool)) == wilson(0, 50)  # nothing says tries are independent
    assert clustered(np.ones((3, 1), bool)) == wilson(1, 1)


def test_clustered_intervals_hold_as_often_as_they_say():
    """Tasks of very different difficulty, three tries each."""
    rng, hits = np.random.default_rng(1), {"clustered": 0, "pooled": 0}
    for _ in range(1000):
        chance = rng.choice([0.05, 0.95], size=60)
        won = rng.random((3, 60)) < chance
        pooled = wilson(int(won.sum()), won.size)
        for name, interval in (("clustered", clustered(won)), ("pooled", pooled)):
            hits[name] += interval.low <= 0.5 <= interval.high
    assert hits["clustered"] > 930
    assert hits["pooled"] < 850


def test_a_mean_score_is_over_tasks():
    values = np.array([[0.0, 1.0, 0.5, 0.5], [0.2, 0.8, 0.5, 0.5]])
    mean = clustered_mean(values)
    half = Z95 * np.std([0.1, 0.9, 0.5, 0.5], ddof=1) / 2
    assert (mean.value, mean.low, mean.high) == pytest.approx((0.5, 0.5 - half, 0.5 + half))
    assert clustered_mean(np.array([[0.3]])).low == 0.0


def test_results_survive_json():
    result = EvalResult(
        temperature=0.4,
        task_ids=("a", "b", "c"),
        kinds=("pick", "heat", "pick"),
        success=np.array([[True, False, False]]),
        turns=np.array([[3, 20, 20]], np.int32),
        score=np.array([[1.0, 0.5, 0.0]], np.float32),
        valid_rate=0.875,
        failed=("c",),
        stops={"done": 1, "max_turns": 2},
        problems={"not admissible": 5, "cut by the token limit": 10},
    )
    again = EvalResult.from_json(json.loads(json.dumps(result.to_json())))
    assert again.to_json() == result.to_json()
    assert again.success.dtype == bool
    assert again.turns.dtype == np.int32
    assert result.rate() == wilson(1, 3)
    assert result.rate_by_kind() == {"heat": wilson(0, 1), "pick": wilson(1, 2)}
    assert (again.stops, again.problems) == (result.stops, result.problems)
    assert list(result.problem_shares()) == ["cut by the token limit", "not admissible"]
    assert result.problem_shares()["not admissible"] == 5 / 43
    with pytest.raises(ValueError, match="has the fields"):
        EvalResult.from_json(result.to_json() | {"extra": 1})
    older = {
        key: value for key, value in result.to_json().items() if key not in ("stops", "problems")
    }
    assert EvalResult.from_json(older).stops == EvalResult.from_json(older).problems == {}
    with pytest.raises(ValueError, match="has the fields"):
        EvalResult.from_json({key: value for key, value in older.items() if key != "failed"})
    for success in ([["a", "b", "c"]], [[2, 0, 1]]):
        with pytest.raises(ValueError, match="neither true nor false"):
            EvalResult.from_json(result.to_json() | {"success": success})


def test_the_share_of_a_stop_reason_is_over_all_episodes():
    result = EvalResult(
        temperature=1.0, task_ids=("a", "b"), kinds=("x", "x"), success=np.ones((2, 2), bool),
        turns=np.ones((2, 2), np.int32), score=np.ones((2, 2), np.float32), valid_rate=1.0,
        stops={"done": 3, "max_turns": 1},
    )  # fmt: skip
    assert result.episodes == 4
    assert result.stop_share("done") == 0.75
    assert result.stop_share("prompt_too_long") == 0.0
    assert dataclasses.replace(result, stops={}).stop_share("done") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"success": np.zeros((1, 3), bool)}, "one kind per task"),
        ({"score": np.zeros((2, 2), np.float32)}, "one kind per task"),
        ({"kinds": ("x",)}, "one kind per task"),
        ({"task_ids": ("a", "a")}, "distinct task_ids"),
        ({"stops": {"done": 3}}, "must add up to its 2 episodes"),
        ({"task_ids": (), "kinds": (), "success": np.zeros((1, 0))}, "one kind per task"),
    ],
)
def test_results_must_be_consistent(change, message):
    fields = {
        "temperature": 1.0,
        "task_ids": ("a", "b"),
        "kinds": ("x", "x"),
        "success": np.zeros((1, 2), bool),
        "turns": np.ones((1, 2), np.int32),
        "score": np.zeros((1, 2), np.float32),
        "valid_rate": 1.0,
    }
    with pytest.raises(ValueError, match=message):
        EvalResult(**fields | change)


def test_an_interval_knows_what_it_excludes():
    interval = Interval(0.1, 0.0, 0.2)
    assert not interval.excludes(0.0)
    assert interval.excludes(0.21)
    assert math.isclose(interval.value, 0.1)
