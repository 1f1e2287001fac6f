"""Published checkpoints against transformers on torch: logits, greedy text, exports.

    ATOD_REAL_MODELS=/models/a:/models/b pytest -m real tests/models/test_real.py

takes Hugging Face folders, separated as in PATH, with a tokenizer; base models too. Needs torch,
which `launch/test.sh --parity` installs, and memory for three float32 copies of the largest.
"""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from acting import act_in_order

from atod_jax.device.policy import Policy
from atod_jax.device.sampling import SamplingConfig
from atod_jax.episodes.chat import ensure_template
from atod_jax.models import AXES, build
from atod_jax.models.checkpoint_io import read_config, read_source, save_hf
from atod_jax.models.loading import load_sharded
from atod_jax.sharding import RULES, make_mesh, param_shardings

pytestmark = pytest.mark.real
FOLDERS = [Path(name) for name in os.environ.get("ATOD_REAL_MODELS", "").split(os.pathsep) if name]
TOLERANCE = 1e-4  # of the largest logit
NEW_TOKENS = 32
QUESTIONS = (
    "You are in a kitchen. Your task is to put a clean mug on the desk. What do you do first?",
    "Name three fruits.",
    "Write a Python function that adds two numbers.",
    "Search for red running shoes under 50 dollars. Which words do you type?",
    "Who wrote The Old Man and the Sea, and when?",
)


@pytest.fixture(scope="module", params=FOLDERS or [None], ids=lambda f: f.name if f else "none")
def folder(request):
    if request.param is None:
        pytest.skip("no real models: set ATOD_REAL_MODELS to Hugging Face folders")
    pytest.importorskip("torch", reason="needs torch: launch/test.sh --parity installs it")
    return request.param


@pytest.fixture(scope="module")
def tokenizer(folder):
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(folder)
    ensure_template(loaded, str(folder))
    return loaded


@pytest.fixture(scope="module")
def theirs(folder):
    return load_theirs(folder)


@pytest.fixture(scope="module")
def ours(folder):
    mesh, config = make_mesh({"data": 1}, np.array(jax.devices()[:1])), read_config(folder)
    return config, load_sharded(
        folder, config, lambda tree: param_shardings(tree, AXES, RULES, mesh=mesh)
    )


def load_theirs(folder):
    import torch
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def prompts_of(tokenizer) -> list[np.ndarray]:
    asked = [[{"role": "user", "content": text}] for text in QUESTIONS]
    ids = [tokenizer.apply_chat_template(a, add_generation_prompt=True)["input_ids"] for a in asked]
    return [np.array(row, np.int32) for row in ids]


def torch_logits(model, prompt: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(prompt)[None].long()).logits[0].numpy()


def test_logits(ours, theirs, tokenizer):
    config, params = ours
    model, prompts = build(config), prompts_of(tokenizer)
    longest = max(map(len, prompts))
    tokens = np.stack([np.pad(p, (0, longest - len(p))) for p in prompts])
    lengths = np.array([[len(p)] for p in prompts], np.int32)
    hidden = jax.jit(model.hidden)(params, tokens, lengths)
    head = model.head(params)
    for prompt, states in zip(prompts, hidden):
        want = torch_logits(theirs, prompt)
        got = jax.jit(lambda h, w: jnp.einsum("ld,vd->lv", h, w))(states[: len(prompt)], head)
        error, largest = np.abs(got - want).max(), np.abs(want).max()
        print(f"largest logit {largest:.2f}, largest difference {error:.1e}")
        assert error <= TOLERANCE * largest


def test_greedy_text(ours, theirs, tokenizer):
    import torch

    config, params = ours
    prompts, end = prompts_of(tokenizer), tokenizer.eos_token_id
    cfg = SamplingConfig(
        max_new_tokens=NEW_TOKENS,
        prompt_buckets=(max(map(len, prompts)),),
        slots=len(prompts),
        eos_ids=(end,),
        pad_id=0,
        temperature=0.0,
    )
    mesh = make_mesh({"data": 1}, np.array(jax.devices()[:1]))
    actions = act_in_order(Policy(build(config), cfg, mesh), params, prompts)
    for prompt, action in zip(prompts, actions):
        ids = torch.from_numpy(prompt)[None].long()
        options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "repetition_penalty": 1.0}
        want = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), eos_token_id=end, pad_token_id=0, **options
        )
        print(repr(tokenizer.decode(action.tokens)))
        np.testing.assert_array_equal(action.tokens, want[0, len(prompt) :].numpy())


def test_the_export_is_the_model(ours, theirs, folder, tokenizer, tmp_path):
    from transformers import AutoTokenizer

    config, params = ours
    save_hf(tmp_path / "m", config, params, tokenizer=tokenizer, source=read_source(folder))
    got, want = load_theirs(tmp_path / "m").state_dict(), theirs.state_dict()
    assert set(got) == set(want)
    for name, weight in want.items():
        assert np.array_equal(got[name].numpy(), weight.numpy()), name
    del got
    fields, source = (json.loads((f / "config.json").read_text()) for f in (tmp_path / "m", folder))
    types = {"dtype", "torch_dtype"}
    assert {k: fields.get(k) for k in source if k not in types} == {
        k: v for k, v in source.items() if k not in types
    }
    generation = folder / "generation_config.json"
    if generation.is_file():
        assert (tmp_path / "m" / generation.name).read_bytes() == generation.read_bytes()
    for before, after in zip(
        prompts_of(tokenizer), prompts_of(AutoTokenizer.from_pretrained(tmp_path / "m"))
    ):
        np.testing.assert_array_equal(before, after)
    assert read_config(tmp_path / "m") == config
