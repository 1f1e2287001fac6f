"""Llama 2 and 3, SmolLM2 and others of that form: no norms on the heads, no biases."""

from atod_jax.models.family import ATTENTION, FIELDS, MLP, Family

FAMILY = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    fields=FIELDS,
    fixed={"attention_bias": False, "mlp_bias": False},
    features={"qk_norm": False},
    block=ATTENTION | MLP,
)
