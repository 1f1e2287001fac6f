"""Qwen3 with a mixture of experts in every layer, such as 30B-A3B; attention as in Qwen3."""

from atod_jax.models.family import ATTENTION, FIELDS, HEAD_NORMS, Block, Family

MOE: Block = {
    "moe/router/kernel": ("mlp.gate.weight", 1),
    "moe/gate/kernel": ("mlp.experts.{expert}.gate_proj.weight", 1),
    "moe/up/kernel": ("mlp.experts.{expert}.up_proj.weight", 1),
    "moe/down/kernel": ("mlp.experts.{expert}.down_proj.weight", 1),
}

FAMILY = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    fields=FIELDS
    | {
        "intermediate_size": "moe_intermediate_size",  # of one expert
        "num_experts": "num_experts",
        "experts_per_token": "num_experts_per_tok",
        "normalize_top_k": "norm_topk_prob",
    },
    fixed={"attention_bias": False, "decoder_sparse_step": 1, "mlp_only_layers": []},
    features={},
    block=ATTENTION | HEAD_NORMS | MOE,
)
