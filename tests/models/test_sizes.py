"""Published sizes: the numbers of parameters are the known ones, counted in two ways."""

import math

import jax
import pytest

from atod_jax.models import AXES, build, config_from_hf
from atod_jax.models.families import tensor_map
from atod_jax.models.sizes import SIZES, published
from atod_jax.sharding import RULES, make_mesh, param_shardings

COUNTS = {  # a tied embedding counts once
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen2.5-1.5B": 1_543_714_304,
    "Qwen2.5-3B": 3_085_938_688,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen3-0.6B": 596_049_920,
    "Qwen3-1.7B": 1_720_574_976,
    "Qwen3-4B": 4_022_468_096,
    "Qwen3-8B": 8_190_735_360,
    "Qwen3-14B": 14_768_307_200,
    "Qwen3-32B": 32_762_123_264,
    "Qwen3-30B-A3B": 30_532_122_624,
    "Llama-3.2-1B": 1_235_814_400,
    "Llama-3.2-3B": 3_212_749_824,
    "SmolLM2-135M": 134_515_008,
}


@pytest.mark.parametrize("name", SIZES)
def test_parameters_are_as_many_as_published(name):
    config = config_from_hf(published(name))
    params = jax.eval_shape(build(config).init, jax.random.key(0))
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(params)) == COUNTS[name]
    assert sum(math.prod(e.hf_shape) for e in tensor_map(config)) == COUNTS[name]


def test_a_repeated_tied_head_is_the_difference_to_the_file():
    """Checkpoints that store the tied head too hold 751,632,384 numbers."""
    config = config_from_hf(published("Qwen3-0.6B"))
    assert COUNTS["Qwen3-0.6B"] + config.vocab_size * config.hidden_size == 751_632_384


@pytest.mark.parametrize("name", SIZES)
def test_every_size_fits_a_mesh_of_eight(name):
    config = config_from_hf(published(name))
    shape = {"fsdp": 2, "tensor": 2, "expert": 2}
    if config.num_kv_heads % 2:  # as three
        shape = {"fsdp": 4, "tensor": 1, "expert": 2}
    params = jax.eval_shape(build(config).init, jax.random.key(0))
    places = param_shardings(params, AXES, RULES, mesh=make_mesh(shape))
    assert {len(p.device_set) for p in jax.tree.leaves(places)} == {8}


def test_an_unknown_size_names_those_there_are():
    with pytest.raises(ValueError, match=r"'Qwen3-9B'; there are .*Qwen3-8B"):
        published("Qwen3-9B")
