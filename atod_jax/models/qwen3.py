"""Qwen3, dense: a norm on every query and key head, no biases."""

from atod_jax.models.family import ATTENTION, FIELDS, HEAD_NORMS, MLP, Family

FAMILY = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    fields=FIELDS,
    fixed={"attention_bias": False},
    features={},
    block=ATTENTION | HEAD_NORMS | MLP,
)
