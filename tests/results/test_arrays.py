"""Digests: equal for equal bits wherever they lie, different after any change; finite numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from atod_jax.results.arrays import digests, not_finite


def mixed(word):
    """MurmurHash3's finalizer."""
    word = ((word ^ (word >> 16)) * 0x85EBCA6B) % 2**32
    word = ((word ^ (word >> 13)) * 0xC2B2AE35) % 2**32
    return word ^ (word >> 16)


def test_the_value_of_a_small_array():
    second = sum(mixed(word ^ (place * 0x9E3779B1) % 2**32) for place, word in enumerate((1, 2)))
    assert digests({"a": jnp.array([1, 2])}) == {"a": f"{3:08x}{second % 2**32:08x}"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "int8", "uint32", "bool"])
def test_any_bit_and_any_order_tells(dtype):
    rng = np.random.default_rng(0)
    values = np.array(jnp.asarray(rng.integers(0, 2, (16, 8)), dtype))
    values[0, :2] = [0, 1]
    raw = values.view(np.uint8)
    swapped = values.copy()
    swapped[0, :2] = values[0, 1::-1]
    variants = [swapped]
    for place in range(0, raw.size, 7):
        changed = raw.copy().reshape(-1)
        changed[place] ^= 1 if dtype == "bool" else 1 << rng.integers(8)
        variants.append(changed.view(values.dtype).reshape(16, 8))
    first = digests([jnp.asarray(values)])["0"]
    assert all(digests([jnp.asarray(other)])["0"] != first for other in variants)


def test_signs_that_change_places_tell():
    values = jnp.array([1.0, -1.0, 1.0])
    assert digests([values]) != digests([values[::-1].at[1].set(1.0).at[0].set(-1.0)])


def test_it_does_not_depend_on_where_an_array_lies():
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    values = jax.random.normal(jax.random.key(0), (8, 4, 3))
    whole = digests([values])
    for spec in (PartitionSpec(), PartitionSpec("a"), PartitionSpec(("a", "b"))):
        assert digests([jax.device_put(values, NamedSharding(mesh, spec))]) == whole


def test_arrays_that_are_not_finite_are_named():
    tree = {
        "fine": jnp.array([1.0, 3e38]), "count": jnp.int32(7), "none": jnp.zeros((0, 3)),
        "nan": (jnp.ones(3), jnp.array([[0.0, np.nan]])), "inf": jnp.array([-np.inf], jnp.bfloat16),
    }  # fmt: skip
    assert not_finite(tree) == ["inf", "nan/1"]
    assert not_finite({"fine": tree["fine"]}) == []
    assert not_finite({"a": jnp.array([2.0]), "b": jnp.array([-2.5])}, largest=2.0) == ["b"]
