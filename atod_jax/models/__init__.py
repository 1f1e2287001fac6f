"""What the rest of the package knows of a model: ten members, no framework."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import Array

from atod_jax.models import serving, transformer
from atod_jax.models.axes import AXES
from atod_jax.models.block import ModelConfig
from atod_jax.models.families import config_from_hf
from atod_jax.models.serving import Cache, Prompts

__all__ = [
    "AXES",
    "Cache",
    "LanguageModel",
    "ModelConfig",
    "Prompts",
    "build",
    "config_from_hf",
]


class LanguageModel(NamedTuple):
    """Pure functions around one architecture; hashable, so it can be static under jit.

    init(key) -> params                                   plain nested dict of float32
    hidden(params, tokens i32[L,W], lengths i32[L,M], *, pick=None) -> f[L,A,D]
    head(params) -> f[V,D]                                logits are hidden @ head.T
    serve(params) -> weights                              what playing reads; `hidden` and `head`
                                                          take them too
    prefill(weights, tokens i32[L,W], lengths i32[L,M]) -> (f[L,M,D], prompts)
    step(weights, token i32[B], cache) -> (f[B,D], cache)
    plain(params) -> params                               of the architecture alone, for files
    split(params) -> (trained, frozen)                    frozen is None where everything trains
    join(trained, frozen) -> params                       the inverse
    """

    config: ModelConfig
    init: Callable[[Array], Any]
    hidden: Callable[..., Array]
    head: Callable[[Any], Array]
    serve: Callable[[Any], Any]
    prefill: Callable[..., tuple[Array, Prompts]]
    step: Callable[..., tuple[Array, Cache]]
    plain: Callable[[Any], Any]
    split: Callable[[Any], tuple[Any, Any]]
    join: Callable[[Any, Any], Any]


@functools.cache
def build(config: ModelConfig) -> LanguageModel:
    """The model of a config. Equal configs give the same object, so nothing compiles twice."""
    return LanguageModel(
        config=config,
        init=jax.jit(functools.partial(transformer.init_params, config)),
        hidden=functools.partial(transformer.hidden_states, config),
        head=functools.partial(transformer.head_matrix, config),
        serve=functools.partial(serving.serve, config),
        prefill=functools.partial(serving.prefill, config),
        step=functools.partial(serving.step, config),
        plain=lambda params: params,
        split=lambda params: (params, None),
        join=lambda trained, frozen: trained,
    )
