"""The logical axes of every parameter a decoder can have; `sharding.RULES` maps them to a mesh.

`serving.serve` joins matrices (qkv, gate_up) only where heads are not split.
"""

_LAYER: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(attn|mlp)_norm/scale", (None,)),
    (r"attn/[qk]_norm/scale", (None,)),
    (r"attn/q/kernel", ("embed", "heads", None)),
    (r"attn/[kv]/kernel", ("embed", "kv_heads", None)),
    (r"attn/qkv/kernel", ("embed", None, None)),
    (r"attn/q/bias", ("heads", None)),
    (r"attn/[kv]/bias", ("kv_heads", None)),
    (r"attn/qkv/bias", (None, None)),
    (r"attn/o/kernel", ("heads", None, "embed")),
    (r"mlp/(gate|up)/kernel", ("embed", "mlp")),
    (r"mlp/gate_up/kernel", ("embed", None)),
    (r"mlp/down/kernel", ("mlp", "embed")),
    (r"moe/router/kernel", ("embed", None)),
    (r"moe/(gate|up)/kernel", ("expert", "embed", "mlp")),
    (r"moe/down/kernel", ("expert", "mlp", "embed")),
    # of kernels kept as integers: one number per output channel
    (r"attn/q/scale", (None, "heads", None)),
    (r"attn/[kv]/scale", (None, "kv_heads", None)),
    (r"attn/qkv/scale", (None, None, None)),
    (r"attn/o/scale", (None, None, "embed")),
    (r"mlp/(gate|up)/scale", (None, "mlp")),
    (r"mlp/gate_up/scale", (None, None)),
    (r"mlp/down/scale", (None, "embed")),
    (r"moe/(gate|up)/scale", ("expert", None, "mlp")),
    (r"moe/down/scale", ("expert", None, "embed")),
    # of the two thin matrices beside a kernel that is adapted
    (r"attn/[qkv]/lora_a", ("embed", None)),
    (r"attn/q/lora_b", (None, "heads", None)),
    (r"attn/[kv]/lora_b", (None, "kv_heads", None)),
    (r"attn/o/lora_a", ("heads", None, None)),
    (r"attn/o/lora_b", (None, "embed")),
    (r"mlp/(gate|up)/lora_a", ("embed", None)),
    (r"mlp/(gate|up)/lora_b", (None, "mlp")),
    (r"mlp/down/lora_a", ("mlp", None)),
    (r"mlp/down/lora_b", (None, "embed")),
)

# Parameter-name pattern -> logical axes; every parameter matches exactly one pattern.
AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(embed|head)/embedding", ("vocab", "embed")),
    (r"norm/scale", (None,)),
    *((f"last/{name}", axes) for name, axes in _LAYER),
    *((rf"blocks/\d+/{name}", axes) for name, axes in _LAYER),
    *((f"layers/{name}", ("layers", *axes)) for name, axes in _LAYER),
)
