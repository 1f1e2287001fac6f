"""The published architectures there is code for, chosen by `model_type` of config.json."""

from collections.abc import Iterator, Mapping
from typing import Any

from atod_jax.models import config_json, family, llama, qwen2, qwen3, qwen3_moe
from atod_jax.models.block import ModelConfig
from atod_jax.models.family import Entry, Family

_FAMILIES = (llama.FAMILY, qwen2.FAMILY, qwen3.FAMILY, qwen3_moe.FAMILY)
FAMILIES = {f.model_type: f for f in _FAMILIES}


def config_from_hf(
    hf: Mapping[str, Any], *, dtype: str = "float32", file: str = "config.json"
) -> ModelConfig:
    """The ModelConfig of a parsed config.json; fields that it lacks mean what transformers means.

    Args:
      hf: the fields.
      dtype: the type the model will compute in.
      file: where the fields stand, for messages.

    Raises:
      ValueError: another architecture, a value of the wrong type, or a field asks for something
        not implemented (some rope scalings, sliding windows, another activation, quantised
        weights); in one line that names file, field and value.
    """
    name = hf.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise ValueError(
            f"{file}: model_type={name!r} is not supported, only {', '.join(FAMILIES)}"
        )
    try:
        return config_json.read(FAMILIES[name], hf, dtype=dtype)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def config_to_hf(
    config: ModelConfig, *, dtype: str, source: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A config.json that gives the same model in transformers.

    Args:
      config: of the model.
      dtype: of the saved tensors.
      source: the config.json that the model came with; what has not changed is kept as it says.
    """
    fields = family.config_to_hf(of(config), config, dtype=dtype)
    if source is None:
        return fields
    was = family.config_to_hf(of(config), config_from_hf(source), dtype=dtype)
    changed = {name: value for name, value in fields.items() if value != was[name]}
    types = [name for name in ("dtype", "torch_dtype") if source.get(name)] or ["dtype"]
    return {**source, **changed, **dict.fromkeys(types, dtype)}


def tensor_map(config: ModelConfig) -> Iterator[Entry]:
    """Every tensor of the checkpoint of `config`, in layer order."""
    return family.tensor_map(of(config), config)


def of(config: ModelConfig) -> Family:
    """The family a config belongs to.

    Raises:
      ValueError: a mixture of features that no published family has.
    """
    features = (config.qkv_bias, config.qk_norm, config.num_experts > 0)
    names = {(False, False, False): "llama", (True, False, False): "qwen2"}
    names |= {(False, True, False): "qwen3", (False, True, True): "qwen3_moe"}
    if features not in names:
        raise ValueError(
            f"qkv_bias, qk_norm, experts = {features}: no published family has these together"
        )
    return FAMILIES[names[features]]
