"""Adapters of low rank: a model whose weights W are frozen beside A and B, which train.

Every matrix of attention and MLP acts as W + (alpha / rank) A B (Hu et al., 2021). A is random and
B zero, so an adapted model starts as the model it adapts. The sum is never formed: each layer adds
(x A) B to x W (`layers.Linear`), which needs no gradient of W's size and keeps changes that are too
small for W's type. Expert stacks, routers, norms and embeddings stay as they are.

Parameters are {"base": those of the model, "lora": A and B by the names of their kernels}.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from atod_jax.models import LanguageModel


@functools.cache
def adapted(lm: LanguageModel, *, rank: int, alpha: float) -> LanguageModel:
    """The model with adapters. Equal arguments give the same object, so nothing compiles twice."""
    scale = alpha / rank

    def init(key: Array) -> Any:
        k_base, k_adapters = jax.random.split(key)
        base = lm.init(k_base)
        return join(init_adapters(base, k_adapters, rank=rank), base)

    def hidden(params: Any, *args: Any, **options: Any) -> Array:
        served = "blocks" in params
        return lm.hidden(params if served else _joined(params, scale), *args, **options)

    return lm._replace(
        init=init,
        hidden=hidden,
        head=lambda params: lm.head(params.get("base", params)),
        serve=lambda params: lm.serve(_joined(params, scale)),
        plain=jax.jit(functools.partial(_merged, scale=scale)),
        split=split,
        join=join,
    )


def split(params: Any) -> tuple[Any, Any]:
    """(adapters, the frozen weights beside them)."""
    return params["lora"], params["base"]


def join(trained: Any, frozen: Any) -> Any:
    """The inverse of `split`."""
    return {"base": frozen, "lora": trained}


def init_adapters(base: Any, key: Array, *, rank: int) -> Any:
    """A, uniform in +-1/sqrt(inputs of W), and B, zero; both float32.

    Returns: for each kernel [(layers,) inputs..., outputs...] of attention and MLP, in its place,
    {"lora_a": [(layers,) inputs..., rank], "lora_b": [(layers,) rank, outputs...]}.
    """
    kernels = {path: x.shape for path, x in _flat(base).items() if _is_adapted(path)}
    flat = {}
    for number, (path, shape) in enumerate(sorted(kernels.items())):
        first = 1 if path[0] == "layers" else 0
        last = first + (2 if path[-2] == "o" else 1)  # the output map reads (heads, head_dim)
        stack, inputs, outputs = shape[:first], shape[first:last], shape[last:]
        draw = jax.random.uniform(
            jax.random.fold_in(key, number), (*stack, *inputs, rank), minval=-1.0, maxval=1.0
        )
        flat[*path[:-1], "lora_a"] = draw * math.prod(inputs) ** -0.5
        flat[*path[:-1], "lora_b"] = jnp.zeros((*stack, rank, *outputs))
    return unflatten_dict(flat)


def _flat(tree: Any) -> dict[tuple[str, ...], Any]:
    """The arrays of a nested dict by their paths."""
    return dict(flatten_dict(tree))


def _is_adapted(path: tuple[str, ...]) -> bool:
    return path[-1] == "kernel" and path[-3] in ("attn", "mlp")


def _joined(params: Any, scale: float) -> Any:
    """One tree: each adapter beside its kernel, where `layers.Linear` looks for it."""
    adapters = _flat(params["lora"])
    scaled = {path: scale * x for path, x in adapters.items() if path[-1] == "lora_b"}
    return unflatten_dict(_flat(params["base"]) | adapters | scaled)


def _merged(params: Any, scale: float) -> Any:
    """The weights of an ordinary model that computes the same."""
    flat, adapters = _flat(params["base"]), _flat(params["lora"])
    # as exact as float32 allows: accelerators would round the factors
    product = functools.partial(jnp.tensordot, axes=1, precision=jax.lax.Precision.HIGHEST)
    for *place, name in [path for path in adapters if path[-1] == "lora_a"]:
        a, b = adapters[*place, name], adapters[*place, "lora_b"]
        change = (jax.vmap(product) if place[0] == "layers" else product)(a, b)
        flat[*place, "kernel"] = flat[*place, "kernel"] + scale * change
    return unflatten_dict(flat)
