"""Our decoder against transformers' models, live (needs torch) and as stored goldens, per family.

A golden is legitimate to remake only when the tiny model below changes:
    PYTHONPATH=. python tests/models/test_parity.py FAMILY
"""

import json
import math
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from acting import act_in_order
from hf_folders import load_hf

from atod_jax.models import ModelConfig, build
from atod_jax.models.checkpoint_io import save_hf
from atod_jax.models.moe import route
from atod_jax.models.rope import Llama3, Yarn

TOLERANCE = 1e-5  # absolute, on logits of standard deviation about 1
WEIGHTS, LOGITS = "{}_tiny_weights.safetensors", "{}_tiny_logits.npz"
TINY = {
    "vocab_size": 90,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 40,
}
EXPERTS = {
    "moe_intermediate_size": 16,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "norm_topk_prob": True,
}
LLAMA3 = {  # slows what turns seldom in 8 positions
    "rope_type": "llama3",
    "rope_theta": 1e2,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}
FAMILIES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", TINY | {"rope_parameters": LLAMA3}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", TINY),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", TINY),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", TINY | EXPERTS),
}
OURS = {  # what our configs of these families add to the common one
    "llama": {"qk_norm": False, "rope_scaling": Llama3(8.0, 1.0, 4.0, 8)},
    "qwen2": {"qkv_bias": True, "qk_norm": False},
    "qwen3": {"rope_scaling": Yarn(4.0, 1.2, 8, 2.0, 0.5, False)},
    "qwen3_moe": {"num_experts": 8, "experts_per_token": 3, "normalize_top_k": False},
}
each_family = pytest.mark.parametrize("family", FAMILIES)
each_head = pytest.mark.parametrize("tied", [True, False])
LENGTHS = (12, 7, 1)


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Ids [3, 12] padded on the left, and where they are valid."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, TINY["vocab_size"], (len(LENGTHS), max(LENGTHS)))
    valid = np.arange(max(LENGTHS))[None, :] >= max(LENGTHS) - np.array(LENGTHS)[:, None]
    return tokens.astype(np.int32), valid


def make_torch_model(family: str, *, tied: bool, **changes):
    """A random model whose attention is sharp and whose norms are far from one."""
    import torch
    import transformers

    config, model, fields = FAMILIES[family]
    rope = {"rope_type": "default", "rope_theta": 1e6}
    fields = {"rope_parameters": rope} | fields | {"tie_word_embeddings": tied} | changes
    model = getattr(transformers, model)(getattr(transformers, config)(**fields))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            norm = name.endswith("norm.weight")
            weight.copy_(1 + 0.3 * noise if norm else noise * weight.shape[-1] ** -0.5)
    return model.eval()


def make_params(config: ModelConfig):
    """The same recipe for our parameters."""

    def one(path, x):
        noise = rng.standard_normal(x.shape).astype(np.float32)
        fan = math.prod(x.shape) // x.shape[-1] if path[-1].key == "kernel" else x.shape[-1]
        return 1 + 0.3 * noise if path[-1].key == "scale" else noise * fan**-0.5

    rng = np.random.default_rng(0)
    return jax.tree_util.tree_map_with_path(one, build(config).init(jax.random.key(0)))


def torch_logits(model, tokens: np.ndarray, valid: np.ndarray) -> np.ndarray:
    import torch

    positions = np.maximum(np.cumsum(valid, axis=1) - 1, 0)
    with torch.no_grad():
        out = model(
            input_ids=torch.from_numpy(tokens).long(),
            attention_mask=torch.from_numpy(valid).long(),
            position_ids=torch.from_numpy(positions),
        )
    return out.logits.numpy()


def our_logits(config: ModelConfig, params, tokens: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Of rows padded on the left as theirs are, which here begin their lines."""
    model, columns, size = build(config), tokens.shape[1], valid.sum(axis=1)

    @jax.jit
    def logits(params, tokens, lengths):
        hidden = model.hidden(params, tokens, lengths)
        return jnp.einsum("nld,vd->nlv", hidden, model.head(params))

    shifted = [np.roll(row, n) for row, n in zip(tokens, size)]
    ours = logits(params, jnp.array(shifted), jnp.array(size[:, None], jnp.int32))
    return np.stack([np.roll(row, columns - n, axis=0) for row, n in zip(np.asarray(ours), size)])


def assert_close(ours: np.ndarray, theirs: np.ndarray, valid: np.ndarray) -> None:
    assert np.std(theirs[valid]) > 0.5
    assert np.abs(ours - theirs)[valid].max() <= TOLERANCE


@each_family
def test_stored_checkpoint_gives_the_stored_logits(family, golden_dir, tmp_path):
    stored = np.load(golden_dir / LOGITS.format(family))
    shutil.copy(golden_dir / WEIGHTS.format(family), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(str(stored["config"]))
    config, params = load_hf(tmp_path)
    ours = our_logits(config, params, stored["tokens"], stored["valid"])
    assert_close(ours, stored["logits"], stored["valid"])


@pytest.mark.parity
@each_family
@each_head
def test_their_checkpoint_in_our_decoder(family, tied, tmp_path):
    theirs = make_torch_model(family, tied=tied)
    theirs.save_pretrained(tmp_path)
    config, params = load_hf(tmp_path)
    tokens, valid = inputs()
    expected = torch_logits(theirs, tokens, valid)
    assert_close(our_logits(config, params, tokens, valid), expected, valid)


@pytest.mark.parity
@each_family
@each_head
@pytest.mark.parametrize("shard_bytes", [4 << 30, 20_000])
def test_our_checkpoint_in_their_decoder(family, tied, shard_bytes, tmp_path):
    import transformers

    config = ModelConfig(
        vocab_size=90,
        hidden_size=32,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        intermediate_size=40,
        rope_theta=5e5,
        rms_eps=1e-5,
        tie_embeddings=tied,
        **OURS[family],
    )
    params = make_params(config)
    save_hf(tmp_path / "out", config, params, shard_bytes=shard_bytes)
    model = getattr(transformers, FAMILIES[family][1])
    theirs, report = model.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens, valid = inputs()
    expected = torch_logits(theirs.eval(), tokens, valid)
    assert_close(our_logits(config, params, tokens, valid), expected, valid)


@pytest.mark.parity
@each_family
def test_greedy_decoding_agrees(family, tmp_path):
    import torch

    from atod_jax.device.policy import Policy
    from atod_jax.device.sampling import SamplingConfig

    theirs = make_torch_model(family, tied=True)
    theirs.save_pretrained(tmp_path)
    config, params = load_hf(tmp_path)
    tokens, valid = inputs()
    cfg = SamplingConfig(
        max_new_tokens=8,
        prompt_buckets=(16,),
        slots=8,
        eos_ids=(TINY["vocab_size"] - 1,),
        pad_id=0,
        temperature=0.0,
    )
    prompts = [row[keep] for row, keep in zip(tokens, valid)]
    actions = act_in_order(Policy(build(config), cfg), params, prompts)
    for prompt, action in zip(prompts, actions):
        ids = torch.from_numpy(prompt)[None].long()
        want = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=TINY["vocab_size"] - 1,
            pad_token_id=0,
        )
        np.testing.assert_array_equal(action.tokens, want[0, len(prompt) :].numpy())


@pytest.mark.parity
@pytest.mark.parametrize("normalize", [True, False])
def test_twin_experts_change_nothing(normalize, tmp_path):
    """Two experts with one router row: whichever is asked where they straddle the limit."""
    import torch

    theirs = make_torch_model("qwen3_moe", tied=True, norm_topk_prob=normalize)
    with torch.no_grad():
        for layer in theirs.model.layers:
            experts = layer.mlp.experts
            for weight in (layer.mlp.gate.weight, experts.gate_up_proj, experts.down_proj):
                weight[5] = weight[1]
    theirs.save_pretrained(tmp_path)
    config, params = load_hf(tmp_path)
    tokens, valid = inputs()
    expected = torch_logits(theirs, tokens, valid)
    assert_close(our_logits(config, params, tokens, valid), expected, valid)


@pytest.mark.parity
@pytest.mark.parametrize(("experts", "chosen"), [(8, 3), (128, 8)])
def test_ties_of_the_router_differ_from_torch_by_the_twin_only(experts, chosen):
    """torch.topk picks either twin, by the order its selection happens to end in; we the lower."""
    import torch

    logits = np.random.default_rng(0).normal(size=(4000, experts)).astype(np.float32)
    logits[:, 7] = logits[:, 2]
    weights, ours = route(jnp.array(logits), chosen, normalize=True)
    probs = torch.softmax(torch.from_numpy(logits), dim=-1)
    value, theirs = torch.topk(probs, chosen, dim=-1)
    np.testing.assert_allclose(weights, value / value.sum(dim=-1, keepdim=True), atol=1e-6)

    def without_twin(ids) -> np.ndarray:
        return np.sort(np.where(np.asarray(ids) == 7, 2, ids), axis=-1)

    np.testing.assert_array_equal(without_twin(ours), without_twin(theirs))
    has = [(np.asarray(ours) == twin).any(axis=-1) for twin in (2, 7)]
    assert (has[0] & ~has[1]).any()
    assert not (~has[0] & has[1]).any()


def make_golden(family: str, folder: Path) -> None:
    """Writes the tiny checkpoint and its logits as torch computes them."""
    import tempfile

    model = make_torch_model(family, tied=False)
    tokens, valid = inputs()
    with tempfile.TemporaryDirectory() as work:
        model.save_pretrained(work)
        shutil.copy(Path(work) / "model.safetensors", folder / WEIGHTS.format(family))
        config = json.loads((Path(work) / "config.json").read_text())
    np.savez_compressed(
        folder / LOGITS.format(family),
        config=json.dumps(config),
        tokens=tokens,
        valid=valid,
        logits=torch_logits(model, tokens, valid),
    )


if __name__ == "__main__":
    make_golden(sys.argv[1], Path(__file__).resolve().parents[1] / "golden")
