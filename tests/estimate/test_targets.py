"""Compiling for devices that are not here, where the compilers are; and what is said elsewhere."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from atod_jax.estimate import targets
from atod_jax.estimate.hardware import CHIPS, Hardware

REPO = Path(__file__).resolve().parents[2]


def installed(hardware):
    try:
        targets.require(Hardware(CHIPS[hardware], 1))
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    ("count", "axes", "sides"),
    [(1, 2, (1, 1)), (2, 2, (2, 1)), (4, 3, (2, 2, 1)), (8, 2, (2, 4)), (16, 3, (2, 2, 4))],
)
def test_chips_lie_in_the_most_even_box(count, axes, sides):
    assert targets.grid(count, axes) == sides


def test_no_slice_of_three_chips():
    with pytest.raises(ValueError, match=r"3 chips: .* powers of two"):
        targets.grid(3, 2)


def test_cards_come_in_whole_nodes():
    assert [targets.nodes(n, 8) for n in (1, 6, 8, 32)] == [(1, 1), (1, 6), (1, 8), (4, 8)]
    with pytest.raises(ValueError, match=r"12 cards: give up to 8, or whole nodes of 8"):
        targets.nodes(12, 8)


@pytest.mark.parametrize(("hardware", "megabytes"), [("h100", 3_590), ("v6e", None)])
def test_the_head_compiles_for(hardware, megabytes, tmp_path):
    if not installed(hardware):
        pytest.skip(f"the compiler for {hardware} is not installed: the extra `aot` brings it")
    command = [sys.executable, "-m", "atod_jax.bench", f"--hardware={hardware}"]
    command += ["--only=head_65536", f"--json={tmp_path}/a.json", f"--dump_hlo={tmp_path}"]
    subprocess.run(command, cwd=REPO, check=True, env={"PATH": ""}, stdout=subprocess.DEVNULL)
    (record,) = json.loads((tmp_path / "a.json").read_text())
    assert (record["name"], record["hardware"]) == ("head_65536", hardware)
    assert 0.3 < record["share_of_limit"] <= 1.0
    assert record["flops"] >= 3 * 2 * 65_536 * 151_936 * 2048
    assert record["temporary_bytes"] < 5e9
    assert (tmp_path / "head_65536.hlo").read_text().startswith("HloModule")
