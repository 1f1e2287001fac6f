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
