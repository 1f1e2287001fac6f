"""The method by name: every place where the paper and its released code disagree, decided."""

import dataclasses
from typing import Any

from atod_jax.algorithms import atod
from atod_jax.config import load_plugin, plugin_names


def overrides(name: str) -> dict[str, Any]:
    """The method by name, as {"section.key": value}: every place where paper and code disagree.

    "released": what the authors' code runs; "paper": what the paper's equations say. The reward
    options go to all algorithms that have them, so that baselines are compared like for like.
    METHOD.md lists the discrepancies.

    Raises:
      ValueError: any other name.
    """
    chosen = atod.preset(name)
    paper = name == "paper"
    shared = {k: getattr(chosen, k) for k in ("statistics", "scale", "invalid_penalty")}
    own = {k: getattr(chosen, k) for k in ("min_turns", "min_divergence")}
    values = {f"algorithm.atod.{k}": v for k, v in own.items()}
    for algorithm in plugin_names("algorithms"):
        fields = {f.name for f in dataclasses.fields(load_plugin("algorithms", algorithm).Config)}
        values |= {f"algorithm.{algorithm}.{k}": v for k, v in shared.items() if k in fields}
    return values | {
        "loss.aggregation": "trajectory-mean-token-mean" if paper else "token-mean",
        "loss.entropy_coef": 0.0 if paper else 0.001,
        "loss.dual_clip": 1e6 if paper else 3.0,  # 1e6: off
    }
