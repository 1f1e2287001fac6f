"""What tells one published architecture from another, and the names of its tensors.

A family is data: the fields of its config.json, the values of them the decoder can compute, and the
tensors of one layer. The functions below turn a `ModelConfig` into such a file and a list of
tensors; `config_json` reads one.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from atod_jax.models import rope
from atod_jax.models.block import ModelConfig

# Fields that change the computation of every family, with the only value the decoder implements.
FIXED = {
    "hidden_act": "silu",
    "use_sliding_window": False,
    "attention_dropout": 0.0,
}

Block = dict[str, tuple[str, int]]  # parameter -> (tensor of one layer, number of input axes)

# The layer without its MLP, as all families have it.
ATTENTION: Block = {
    "attn_norm/scale": ("input_layernorm.weight", 0),
    "attn/q/kernel": ("self_attn.q_proj.weight", 1),
    "attn/k/kernel": ("self_attn.k_proj.weight", 1),
    "attn/v/kernel": ("self_attn.v_proj.weight", 1),
    "attn/o/kernel": ("self_attn.o_proj.weight", 2),
    "mlp_norm/scale": ("post_attention_layernorm.weight", 0),
}
HEAD_NORMS: Block = {
    "attn/q_norm/scale": ("self_attn.q_norm.weight", 0),
    "attn/k_norm/scale": ("self_attn.k_norm.weight", 0),
}
MLP: Block = {
    "mlp/gate/kernel": ("mlp.gate_proj.weight", 1),
    "mlp/up/kernel": ("mlp.up_proj.weight", 1),
    "mlp/down/kernel": ("mlp.down_proj.weight", 1),
}
FIELDS = {  # ours -> theirs
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "intermediate_size": "intermediate_size",
    "rms_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
}


class Family(NamedTuple):
    """One architecture as published on Hugging Face."""

    model_type: str  # of config.json
    architecture: str  # the class of transformers
    fields: Mapping[str, str]  # ModelConfig field -> config.json field
    fixed: Mapping[str, Any]  # config.json field -> the only value there is code for
    features: Mapping[str, Any]  # ModelConfig fields that make the family what it is
    block: Block


class Entry(NamedTuple):
    """One tensor of a Hugging Face checkpoint and where it lives in our parameters.

    Theirs is [out, in], ours [*in, *out]; a vector or a table (`inputs` 0) keeps its order.
    """

    hf_name: str
    hf_shape: tuple[int, ...]
    path: tuple[str, ...]
    stack: tuple[int, ...]  # leading axes of our parameter: layers, experts
    position: tuple[int, ...]  # of this tensor along them
    shape: tuple[int, ...]  # ours, without the leading axes
    inputs: int  # how many axes of `shape` are contracted


def config_to_hf(family: Family, config: ModelConfig, *, dtype: str) -> dict[str, Any]:
    """A config.json that gives the same model in transformers; `dtype` is of the saved tensors."""
    return {
        "model_type": family.model_type,
        "architectures": [family.architecture],
        **FIXED,
        **family.fixed,
        **{theirs: getattr(config, ours) for ours, theirs in family.fields.items()},
        "rope_parameters": rope.written(config.rope_theta, config.rope_scaling),
        "rope_theta": config.rope_theta,
        "dtype": dtype,
    }


def tensor_map(family: Family, config: ModelConfig) -> Iterator[Entry]:
    """Every tensor of the checkpoint of `config`, in layer order."""
    table, width = (config.vocab_size, config.hidden_size), (config.hidden_size,)
    yield Entry("model.embed_tokens.weight", table, ("embed", "embedding"), (), (), table, 0)
    for layer in range(config.num_layers):
        for ours, (theirs, inputs) in family.block.items():
            yield from _layer_tensors(config, layer, ours, theirs, inputs)
    yield Entry("model.norm.weight", width, ("norm", "scale"), (), (), width, 0)
    if not config.tie_embeddings:
        yield Entry("lm_head.weight", table, ("head", "embedding"), (), (), table, 0)


def _layer_tensors(
    config: ModelConfig, layer: int, ours: str, theirs: str, inputs: int
) -> Iterator[Entry]:
    """One tensor, or one per expert."""
    stacked = layer < config.num_layers - 1
    stack, index = ((config.num_layers - 1,), (layer,)) if stacked else ((), ())
    shape = _shapes(config)[ours]
    hf_shape = (math.prod(shape[inputs:]), math.prod(shape[:inputs]))[: 2 if inputs else 1]
    path = ("layers" if stacked else "last", *ours.split("/"))
    name = f"model.layers.{layer}.{theirs}"
    if "{expert}" not in name:
        yield Entry(name, hf_shape, path, stack, index, shape, inputs)
        return
    stack = (*stack, config.num_experts)
    for e in range(config.num_experts):
        yield Entry(name.format(expert=e), hf_shape, path, stack, (*index, e), shape, inputs)


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter a block can have, without the axes of layers and experts."""
    width, wide, head = config.hidden_size, config.intermediate_size, config.head_dim
    queries, keys = (config.num_heads, head), (config.num_kv_heads, head)
    return {
        "attn_norm/scale": (width,),
        "attn/q/kernel": (width, *queries),
        "attn/k/kernel": (width, *keys),
        "attn/v/kernel": (width, *keys),
        "attn/q/bias": queries,
        "attn/k/bias": keys,
        "attn/v/bias": keys,
        "attn/q_norm/scale": (head,),
        "attn/k_norm/scale": (head,),
        "attn/o/kernel": (*queries, width),
        "mlp_norm/scale": (width,),
        "mlp/gate/kernel": (width, wide),
        "mlp/up/kernel": (width, wide),
        "mlp/down/kernel": (wide, width),
        "moe/router/kernel": (width, config.num_experts),
        "moe/gate/kernel": (width, wide),
        "moe/up/kernel": (width, wide),
        "moe/down/kernel": (wide, width),
    }
