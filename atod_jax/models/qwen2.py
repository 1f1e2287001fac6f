"""Qwen2 and Qwen2.5, dense: biases on queries, keys and values, no norms on the heads.

Published configs leave `head_dim` out: it is the width divided by the number of heads.
"""

from atod_jax.models.family import ATTENTION, FIELDS, MLP, Family

FAMILY = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    fields=FIELDS,
    fixed={},
    features={"qkv_bias": True, "qk_norm": False},
    block=ATTENTION
    | {f"attn/{name}/bias": (f"self_attn.{name}_proj.bias", 0) for name in "qkv"}
    | MLP,
)
