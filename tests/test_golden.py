"""Golden numbers of a reference implementation, through the public functions, jitted and not.

The folder is ATOD_GOLDEN_DIR (default tests/golden): `index.json` names per case a function, its
parameters and the tolerance |x - ref| <= atol + rtol |ref|. Every case of the index runs; a
function that `golden_adapters` does not know is a failure, not a skip.
"""

import contextlib
import json
import os
from pathlib import Path

import golden_adapters
import golden_inputs
import jax
import numpy as np
import pytest

FOLDER = Path(os.environ.get("ATOD_GOLDEN_DIR", Path(__file__).parent / "golden"))
CASES = json.loads((FOLDER / "index.json").read_text())["cases"]


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_case(case, jit, golden_dir):
    adapter = golden_adapters.ADAPTERS.get(case["function"])
    assert adapter is not None, f"{case['name']}: no adapter for {case['function']!r}"
    with np.load(golden_dir / case["file"]) as file:
        arrays = dict(file)
    expected = {k.removeprefix("out_"): v for k, v in arrays.items() if k.startswith("out_")}
    # tolerances below float32 resolution ask for the same code in double precision
    double = case["rtol"] < 1e-7 and any(v.dtype == np.float64 for v in expected.values())
    with jax.enable_x64(True) if double else contextlib.nullcontext():
        inputs = golden_inputs.prepared(arrays)

        def run(inputs):
            return adapter(case["params"], inputs)

        got = (jax.jit(run) if jit else run)(inputs)
    assert set(got) == set(expected)
    for name, reference in expected.items():
        value = golden_inputs.fitted(name, got, expected, case["function"])
        np.testing.assert_allclose(
            value, reference, rtol=case["rtol"], atol=case["atol"], err_msg=name
        )


def test_the_cases_come_from_the_folder_under_test(golden_dir):
    assert golden_dir == FOLDER
    assert len({c["name"] for c in CASES}) == len(CASES) > 0


def converted(arrays, change):
    """The arrays of a case with every advantage, given and expected, through `change`."""
    mask = arrays["in_mask"] > 0
    names = golden_inputs.ADVANTAGES
    return {
        key: change(x, mask) if key.partition("_")[2] in names and x.ndim == 2 else x
        for key, x in arrays.items()
    }


def per_row(x, mask):
    """The number that all action tokens of a row share; it must be one."""
    value = np.array([row[m][0] if m.any() else 0.0 for row, m in zip(x, mask, strict=True)])
    np.testing.assert_array_equal(np.where(mask, value[:, None], 0.0), np.where(mask, x, 0.0))
    return value.astype(x.dtype)


def results(name, change=None, **params):
    """The case's expected outputs and ours, after a change of its arrays and parameters."""
    folder = Path(__file__).parent / "golden"
    case = next(
        c for c in json.loads((folder / "index.json").read_text())["cases"] if c["name"] == name
    )
    with np.load(folder / case["file"]) as file:
        arrays = dict(file)
    arrays = change(arrays) if change else arrays
    expected = {k.removeprefix("out_"): v for k, v in arrays.items() if k.startswith("out_")}
    adapter = golden_adapters.ADAPTERS[case["function"]]
    got = adapter(case["params"] | params, golden_inputs.prepared(arrays))
    fitted = {k: golden_inputs.fitted(k, got, expected, case["function"]) for k in expected}
    return expected, fitted, {"rtol": case["rtol"], "atol": case["atol"]}


@pytest.mark.parametrize("name", ["grpo_cross_steps", "gigpo_mean_norm"])
def test_an_expected_advantage_may_be_per_row(name):
    expected, got, tolerance = results(name, lambda arrays: converted(arrays, per_row))
    assert expected["advantage"].ndim == 1
    np.testing.assert_allclose(got["advantage"], expected["advantage"], **tolerance)


@pytest.mark.parametrize("name", ["atod_paper_step1", "sod_stepwise_delta02"])
def test_a_given_advantage_may_be_per_row(name):
    def change(arrays):
        given = per_row(arrays["in_grpo_advantage"], arrays["in_mask"] > 0)
        return arrays | {"in_grpo_advantage": given}

    expected, got, tolerance = results(name, change)
    np.testing.assert_allclose(got["advantage"], expected["advantage"], **tolerance)


def test_a_given_advantage_per_row_is_that_of_all_its_tokens():
    def whole(arrays):
        rows = np.random.default_rng(0).integers(-2, 3, len(arrays["in_mask"]))
        return arrays | {"in_advantages": rows}  # whole numbers, too

    def spread(arrays):
        rows = whole(arrays)["in_advantages"].astype(np.float32)
        return arrays | {"in_advantages": np.tile(rows[:, None], arrays["in_mask"].shape[1])}

    (_, a, _), (_, b, _) = (results("policy_loss_token_mean", c) for c in (whole, spread))
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


WHOLE = {
    "atod_paper_step1": {"kl_coef": 1, "rl_coef": 1, "tip_rho": 1, "tip_w_max": 2},
    "atod_pipeline_full": {"kl_coef": 1, "rl_coef": 1, "rl_coef_max": 2, "curriculum_bias": 1},
    "sod_stepwise_delta02": {"opd_coef": 1, "gamma": 1, "beta_min": 0, "opd_only": 0},
    "policy_loss_token_mean": {"clip_ratio_c": 3},
    "sdar_loss": {"gate_beta": 5},
    "gigpo_mean_norm": {"step_advantage_w": 1},
    "k3_kl_basic": {"clamp": 10},
    "anneal_paper": {"kl_init": 1, "rl_init": 1, "rl_max": 2, "anneal_steps": 80.0},
    "tdur_basic": {"tip_rho": np.array(1), "tip_smoothing": 0, "tip_min_turns": 3.0},
    "curriculum_basic": {"checkpoint_steps": 6, "softness": 1, "max_weight": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_real_options_may_be_whole_numbers(name):
    double = jax.enable_x64(True) if name == "anneal_paper" else contextlib.nullcontext()
    with double:
        expected, got, tolerance = results(name, **WHOLE[name])
    for key, reference in expected.items():
        np.testing.assert_allclose(got[key], reference, **tolerance)


def test_rewards_may_be_whole_numbers():
    def change(arrays):
        rewards = arrays["in_episode_reward"]
        np.testing.assert_array_equal(rewards, np.round(rewards))
        return arrays | {"in_episode_reward": rewards.astype(np.int64)}

    expected, got, tolerance = results("atod_pipeline_full", change)
    np.testing.assert_allclose(got["advantage"], expected["advantage"], **tolerance)
