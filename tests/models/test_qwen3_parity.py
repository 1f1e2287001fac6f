"""Our decoder against transformers' Qwen3ForCausalLM, live (needs torch) and as a stored golden.

The golden is legitimate to remake only when the tiny model below changes:
    python tests/models/test_qwen3_parity.py
"""

import json
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atod_jax.models import ModelConfig, build
from atod_jax.models.checkpoint_io import load_hf, save_hf

TOLERANCE = 1e-5  # absolute, on logits of standard deviation about 1
WEIGHTS, LOGITS = "qwen3_tiny_weights.safetensors", "qwen3_tiny_logits.npz"
TINY = {
    "vocab_size": 90,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 40,
    "rope_theta": 1e6,
}
LENGTHS = (12, 7, 1)


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Ids [3, 12] padded on the left, and where they are valid."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, TINY["vocab_size"], (len(LENGTHS), max(LENGTHS)))
    valid = np.arange(max(LENGTHS))[None, :] >= max(LENGTHS) - np.array(LENGTHS)[:, None]
    return tokens.astype(np.int32), valid


def make_torch_model(*, tied: bool):
    """A random Qwen3 whose attention is sharp and whose norms are far from one."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    fields = {k: v for k, v in TINY.items() if k != "rope_theta"}
    rope = {"rope_type": "default", "rope_theta": TINY["rope_theta"]}
    model = Qwen3ForCausalLM(Qwen3Config(**fields, rope_parameters=rope, tie_word_embeddings=tied))
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
    model = build(config)

    @jax.jit
    def logits(params):
        hidden, _ = model.hidden(params, jnp.array(tokens), jnp.array(valid), tail=tokens.shape[1])
        return jnp.einsum("nld,vd->nlv", hidden, model.head(params))

    return np.asarray(logits(params))


def assert_close(ours: np.ndarray, theirs: np.ndarray, valid: np.ndarray) -> None:
    assert np.std(theirs[valid]) > 0.5
    assert np.abs(ours - theirs)[valid].max() <= TOLERANCE


def test_stored_checkpoint_gives_the_stored_logits(golden_dir, tmp_path):
    stored = np.load(golden_dir / LOGITS)
    shutil.copy(golden_dir / WEIGHTS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(str(stored["config"]))
    config, params = load_hf(tmp_path)
    ours = our_logits(config, params, stored["tokens"], stored["valid"])
    assert_close(ours, stored["logits"], stored["valid"])


@pytest.mark.parity
@pytest.mark.parametrize("tied", [True, False])
def test_their_checkpoint_in_our_decoder(tied, tmp_path):
    theirs = make_torch_model(tied=tied)
    theirs.save_pretrained(tmp_path)
    config, params = load_hf(tmp_path)
    tokens, valid = inputs()
    expected = torch_logits(theirs, tokens, valid)
    assert_close(our_logits(config, params, tokens, valid), expected, valid)


@pytest.mark.parity
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard_bytes", [4 << 30, 20_000])
def test_our_checkpoint_in_their_decoder(tied, shard_bytes, tmp_path):
    from transformers import Qwen3ForCausalLM

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
    )
    params = make_params(config)
    save_hf(tmp_path / "out", config, params, shard_bytes=shard_bytes)
    theirs, report = Qwen3ForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens, valid = inputs()
    expected = torch_logits(theirs.eval(), tokens, valid)
    assert_close(our_logits(config, params, tokens, valid), expected, valid)


@pytest.mark.parity
def test_greedy_decoding_agrees(tmp_path):
    import torch

    from atod_jax.sampling import Policy, SamplingConfig

    theirs = make_torch_model(tied=True)
    theirs.save_pretrained(tmp_path)
    config, params = load_hf(tmp_path)
    tokens, valid = inputs()
    cfg = SamplingConfig(
        max_new_tokens=8,
        prompt_buckets=(16,),
        max_rows=8,
        eos_ids=(TINY["vocab_size"] - 1,),
        pad_id=0,
        temperature=0.0,
    )
    prompts = [row[keep] for row, keep in zip(tokens, valid)]
    actions = Policy(build(config), cfg).act(params, prompts, [0, 1, 2], jax.random.key(0))
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


def make_golden(folder: Path) -> None:
    """Writes the tiny checkpoint and its logits as torch computes them."""
    import tempfile

    model = make_torch_model(tied=False)
    tokens, valid = inputs()
    with tempfile.TemporaryDirectory() as work:
        model.save_pretrained(work)
        shutil.copy(Path(work) / "model.safetensors", folder / WEIGHTS)
        config = json.loads((Path(work) / "config.json").read_text())
    np.savez_compressed(
        folder / LOGITS,
        config=json.dumps(config),
        tokens=tokens,
        valid=valid,
        logits=torch_logits(model, tokens, valid),
    )


if __name__ == "__main__":
    make_golden(Path(__file__).resolve().parents[1] / "golden")
