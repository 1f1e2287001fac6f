"""The published architectures there is code for, chosen by `model_type` of config.json."""

from collections.abc import Iterator, Mapping
from typing import Any

from atod_jax.models import family, qwen2, qwen3, qwen3_moe
from atod_jax.models.block import ModelConfig
from atod_jax.models.family import Entry, Family

FAMILIES = {f.model_type: f for f in (qwen2.FAMILY, qwen3.FAMILY, qwen3_moe.FAMILY)}


def config_from_hf(hf: Mapping[str, Any], *, dtype: str = "float32") -> ModelConfig:
    """The ModelConfig of a parsed config.json.

    Raises:
      ValueError: another architecture, a needed field is missing, or a field asks for something
        not implemented (rope scaling, sliding windows, another activation, quantised weights).
    """
    name = hf.get("model_type")
    if name not in FAMILIES:
        raise ValueError(
            f"config.json: model_type={name!r} is not supported, only {', '.join(FAMILIES)}"
        )
    return family.config_from_hf(FAMILIES[name], hf, dtype=dtype)


def config_to_hf(config: ModelConfig, *, dtype: str) -> dict[str, Any]:
    """A config.json that gives the same model in transformers; `dtype` is of the saved tensors."""
    return family.config_to_hf(of(config), config, dtype=dtype)


def tensor_map(config: ModelConfig) -> Iterator[Entry]:
    """Every tensor of the checkpoint of `config`, in layer order."""
    return family.tensor_map(of(config), config)


def of(config: ModelConfig) -> Family:
    """The family a config belongs to.

    Raises:
      ValueError: a mixture of features that no published family has.
    """
    features = (config.qkv_bias, config.qk_norm, config.num_experts > 0)
    names = {(True, False, False): "qwen2", (False, True, False): "qwen3"}
    names[False, True, True] = "qwen3_moe"
    if features not in names:
        raise ValueError(
            f"qkv_bias, qk_norm, experts = {features}: no published family has these together"
        )
    return FAMILIES[names[features]]
