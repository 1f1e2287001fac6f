"""A config.json as transformers means it, or refused in one line.

transformers' own class of the family fills in what is missing or null, decides between the older
and newer places of the rotary positions, and checks types. Here is decided what of that the decoder
can compute.
"""

import copy
import dataclasses
import re
import sys
from collections.abc import Mapping
from typing import Any

from atod_jax.models import rope
from atod_jax.models.block import ModelConfig
from atod_jax.models.family import FIXED, Family

# What another model would be computed with; transformers looks at these whatever the family.
_UNSUPPORTED = {
    "quantization_config": None,
    "sliding_window": None,
    "attention_chunk_size": None,
    "is_causal": True,
    "configuration_files": None,
}
# Beyond, a slip of the keyboard: lists as long as these would be made.
_MOST = {"num_hidden_layers": 1024, "num_experts": 1024, "num_local_experts": 1024}
_MOST |= {"num_labels": 10**6}
# Says how transformers computes, not what; it knows these.
_ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention", None)
_DTYPES = (None, "float32", "bfloat16", "float16", "float64")


def read(family: Family, hf: Mapping[str, Any], *, dtype: str) -> ModelConfig:
    """The ModelConfig of a parsed config.json; see `families.config_from_hf`.

    Raises:
      ValueError: in one line, without the name of the file.
    """
    _check_numbers(family, hf)
    config = _as_transformers(family, hf)
    for name, value in (FIXED | _UNSUPPORTED | dict(family.fixed)).items():
        given = getattr(config, name, value)
        if name == "attention_dropout" and given in (0, None):
            continue
        if given != value or type(given) is not type(value):
            raise ValueError(f"{name}={given!r} is not supported, only {value!r}")
    layer_types = getattr(config, "layer_types", None)
    if any(kind != "full_attention" for kind in layer_types or ()):
        raise ValueError(f"layer_types={layer_types}: only full_attention is supported")
    fields = {ours: _field(config, ours, theirs) for ours, theirs in family.fields.items()}
    _check_padding(config)
    theta, scaling = rope.read(config.rope_parameters, context=config.max_position_embeddings)
    if scaling is not None:
        rope.check(theta, fields["head_dim"], scaling)
    fields |= {"rope_theta": theta, "rope_scaling": scaling, "dtype": dtype}
    try:
        return ModelConfig(**fields, **family.features)
    except ValueError as error:
        raise ValueError(_in_their_words(family, str(error))) from error


def _check_numbers(family: Family, hf: Mapping[str, Any]) -> None:
    """Ranges, before anything is computed with the numbers; types are checked by transformers."""
    for name in {*family.fields.values(), *_MOST}:
        value, most = hf.get(name), _MOST.get(name, sys.float_info.max)
        if isinstance(value, int | float) and value is not False and not 0 < value <= most:
            raise ValueError(
                f"{name}={value!r} is not supported: write a number above 0, at most {most:g}"
            )


def _as_transformers(family: Family, hf: Mapping[str, Any]) -> Any:
    """The config of transformers' class."""
    from transformers import AutoConfig  # a second, which only those pay who read a model

    for name in ("dtype", "torch_dtype"):  # checked here, since transformers asks torch
        if hf.get(name) not in _DTYPES:
            raise ValueError(f"{name}={hf[name]!r} is not supported, only {_DTYPES[1:]}")
    for name in ("attn_implementation", "_attn_implementation"):
        if hf.get(name) not in _ATTENTION:
            raise ValueError(f"{name}={hf[name]!r} is not supported: take it out")
    if not isinstance(hf.get("auto_map", {}), dict):
        raise ValueError(f"auto_map={hf['auto_map']!r} is not supported: take it out")
    if hf.get("per_layer_config") is not None:
        raise ValueError(f"per_layer_config={hf['per_layer_config']!r:.60} is not supported")
    fields = {k: v for k, v in hf.items() if k not in ("model_type", "dtype", "torch_dtype")}
    try:
        config = AutoConfig.for_model(family.model_type, **copy.deepcopy(fields))
        config.standardize_rope_params()  # as its models do once more, with all fields in place
    except Exception as error:  # of any kind: these classes check types, and little else
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"transformers refuses it ({said}); correct that value") from error
    return config


def _field(config: Any, ours: str, theirs: str) -> Any:
    """A field that the decoder needs, of its type."""
    if theirs == "head_dim" and not hasattr(config, theirs):  # families that divide the width
        return config.hidden_size // config.num_attention_heads
    value, wanted = getattr(config, theirs), _TYPES[ours]
    if type(value) is not wanted:
        raise ValueError(f"{theirs}={value!r} is not supported: write {_CALLED[wanted]}")
    return value


_TYPES = {field.name: field.type for field in dataclasses.fields(ModelConfig)}
_CALLED = {int: "a whole number", float: "a number with a decimal point", bool: "true or false"}


def _check_padding(config: Any) -> None:
    """The embedding of transformers has a row for padding."""
    pad, rows = config.pad_token_id, config.vocab_size
    if pad is not None and not -rows <= pad < rows:
        raise ValueError(f"pad_token_id={pad!r} is not one of the vocab_size={rows} ids")


def _in_their_words(family: Family, message: str) -> str:
    """A message about fields of ours with the names that config.json has for them."""
    return re.sub(r"\w+", lambda word: family.fields.get(word[0], word[0]), message)
