"""Names of hardware, and how far its links reach."""

import pytest

from atod_jax.estimate.hardware import CHIPS, chip_of, local, parse


def test_names_count_chips_and_those_of_v5p_cores():
    assert (parse("v5e-16").count, parse("v5p-32").count, parse("h100-8").count) == (16, 16, 8)
    assert str(parse("v6e-8")) == "8 x v6e"
    assert (parse("h100").count, parse("v5p").count) == (1, 1)


def test_what_is_here():
    here = local()
    assert (here.count, here.platform) == (8, "cpu")
    assert here.chip.memory > 1e8
    assert chip_of("TPU v6 lite") is CHIPS["v6e"]
    assert chip_of("NVIDIA H100 80GB HBM3") is CHIPS["h100"]


@pytest.mark.parametrize("name", ["v5e-0", "a100-8", "v5e-16x", "", "v5p-7"])
def test_other_names_are_refused_with_what_would_do(name):
    with pytest.raises(ValueError, match=r"--hardware=.*(v5e-16|give 2 N)"):
        parse(name)


def test_platforms_are_those_of_jax():
    names = {name: parse(f"{name}-2").platform for name in CHIPS}
    assert names == {"v5e": "tpu", "v5p": "tpu", "v6e": "tpu", "h100": "gpu", "h200": "gpu"}


def test_a_group_that_leaves_the_node_is_slow():
    h100 = parse("h100-64")
    assert h100.chip.reach(8) == 450e9
    assert h100.chip.reach(16) == 50e9
