"""The runs by name: the models of each size, and the method where paper and code disagree."""

from typing import Any

from atod_jax.algorithms import atod
from atod_jax.options import plugins
from atod_jax.options.plugins import ALGORITHMS

GPUS = 8  # of every released run; their micro-batches are given per GPU
# Student size -> the Hugging Face names of the student and of the model its teacher grew from.
# The released teachers are these models after GRPO on the task, and were not published.
MODELS = {
    "0.6b": ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-4B"),
    "1.7b": ("Qwen/Qwen3-1.7B", "Qwen/Qwen3-4B"),
    "4b": ("Qwen/Qwen3-4B", "Qwen/Qwen3-30B-A3B"),
}


def models(student: str, algorithm: str) -> dict[str, str]:
    """The student of a size and, if the algorithm learns from one, its teacher's model.

    Returns:
      {"student.path": name, "teacher.path": name or ""}.

    Raises:
      ValueError: no run has a student of that size; no such algorithm.
    """
    if student not in MODELS:
        raise ValueError(f"student={student!r} is unknown; choose from {', '.join(MODELS)}")
    own, teacher = MODELS[student]
    plugin = plugins.load(ALGORITHMS, algorithm)
    settings = plugin.Config()
    taught = plugin.needs_teacher(settings, 0) and not plugin.teacher(settings).self_teacher
    return {"student.path": own, "teacher.path": teacher if taught else ""}


def overrides(name: str, *, invalid_penalty: float = 0.1) -> dict[str, Any]:
    """The method by name, as {"section.key": value}: every place where paper and code disagree.

    "released": what the authors' code runs; "paper": what the paper's equations say. The reward
    options go to all algorithms that have them, so that baselines are compared like for like.
    METHOD.md lists the discrepancies.

    Args:
      name: "released" or "paper".
      invalid_penalty: of the task's released script, off the score of a row; the paper has none.

    Raises:
      ValueError: any other name.
    """
    chosen = atod.preset(name)
    paper = name == "paper"
    shared = {k: getattr(chosen.reward, k) for k in ("statistics", "scale")}
    shared["invalid_penalty"] = 0.0 if paper else invalid_penalty
    own = {k: getattr(chosen.tdur, k) for k in ("min_turns", "min_divergence")}
    values = {f"algorithm.atod.tdur.{k}": v for k, v in own.items()}
    for algorithm, plugin in plugins.shipped(ALGORITHMS).items():
        if hasattr(plugin.Config(), "reward"):
            values |= {f"algorithm.{algorithm}.reward.{k}": v for k, v in shared.items()}
    return values | {
        "loss.aggregation": "trajectory-mean-token-mean" if paper else "token-mean",
        "loss.entropy_coef": 0.0 if paper else 0.001,
        "loss.dual_clip": 1e6 if paper else 3.0,  # 1e6: off
    }
