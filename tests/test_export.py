"""A run becomes a folder that others, and we, can load."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf_folders import load_hf
from runs import load_models, typed

from atod_jax.device.learner import init_state
from atod_jax.device.optim import make_optimizer
from atod_jax.episodes.render import load_tokenizer
from atod_jax.export import export
from atod_jax.models import build
from atod_jax.models.checkpoint_io import save_hf
from atod_jax.results.checkpoint import Checkpointer
from configs import household

REPO = Path(__file__).resolve().parents[1]


def small_config():
    c = household.get_config("algo=grpo,smoke")
    c.teacher.path = ""
    c.packing.micro_rows = c.eval.slots = 8
    return c


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The checkpoint of a run that has changed its student, and that student as a folder."""
    folder, cfg = tmp_path_factory.mktemp("run"), small_config()
    _, model, _ = load_models(cfg)
    params = jax.tree.map(lambda x: 1.5 * x, model.params)
    state = init_state(model.lm, params, tx=make_optimizer(typed(cfg).optim))
    checkpoints = Checkpointer(folder / "run" / "checkpoints")
    checkpoints.save(1, state)
    checkpoints.close()
    save_hf(folder / "student", model.lm.config, params, tokenizer=model.tokenizer)
    return folder


@pytest.mark.parametrize("step", ["", "checkpoints/1"])
def test_the_export_is_what_training_saved(run, step, tmp_path):
    export(typed(small_config()), str(run / "run" / step), str(tmp_path / "out"))
    config, params = load_hf(tmp_path / "out")
    want_config, want = load_hf(run / "student")
    assert config == want_config
    jax.tree.map(np.testing.assert_array_equal, params, want)
    names = {f.name for f in (tmp_path / "out").iterdir()}
    assert names == {f.name for f in (run / "student").iterdir()}
    assert "chat_template.jinja" in names


def test_files_hold_no_more_than_was_asked(run, tmp_path, capsys):
    out = tmp_path / "out"
    export(typed(small_config()), str(run / "student"), str(out), max_shard_gb=1e-4)
    files = sorted(out.glob("model-*.safetensors"))
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert {f.name for f in files} == set(index["weight_map"].values())
    assert f"{len(files)} weight file(s)" in capsys.readouterr().out
    one = sorted(index["weight_map"].values()).count  # a larger file holds a single tensor
    assert all(f.stat().st_size < 1.1e5 or one(f.name) == 1 for f in files)
    jax.tree.map(np.testing.assert_array_equal, load_hf(out)[1], load_hf(run / "student")[1])


def test_the_config_says_where_a_response_ends(run):
    fields = json.loads((run / "student" / "config.json").read_text())
    tokenizer = load_tokenizer(str(run / "student"))
    assert fields["eos_token_id"] == tokenizer.eos_token_id
    assert fields["pad_token_id"] == tokenizer.pad_token_id


def test_what_the_source_says_is_kept(run, tmp_path):
    """All fields but the type of the weights, whether anybody here reads them or not."""
    shutil.copytree(run / "student", tmp_path / "source")
    file = tmp_path / "source" / "config.json"
    told = json.loads(file.read_text()) | {"max_position_embeddings": 99, "eos_token_id": [1, 2]}
    file.write_text(json.dumps(told))
    (tmp_path / "source" / "generation_config.json").write_text('{"top_k": 20}')
    export(typed(small_config()), str(tmp_path / "source"), str(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == told
    assert (tmp_path / "out" / "generation_config.json").read_text() == '{"top_k": 20}'


def test_bad_arguments_are_named(run, tmp_path):
    with pytest.raises(ValueError, match="--out is missing"):
        export(typed(small_config()), str(run / "run"), "")
    with pytest.raises(ValueError, match="--max_shard_gb=0"):
        export(typed(small_config()), str(run / "run"), str(tmp_path / "a"), max_shard_gb=0)
    with pytest.raises(FileNotFoundError, match=r"no checkpoints of a run and no config\.json"):
        export(typed(small_config()), str(tmp_path), str(tmp_path / "a"))
    with pytest.raises(ValueError, match=r"--out=.* holds .*student, which this run needs"):
        export(typed(small_config()), str(run / "student"), str(run))
    with pytest.raises(ValueError, match=r"--out=.*/run holds checkpoints, which no export has"):
        export(typed(small_config()), str(run / "student"), str(run / "run"))


def test_the_command(run, tmp_path):
    command = [
        sys.executable, "-m", "atod_jax.export", "--config=configs/household.py:algo=grpo,smoke",
        f"--checkpoint={run / 'student'}", f"--out={tmp_path / 'out'}", "--max_shard_gb=0.5",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 weight file(s)" in done.stdout
    again = subprocess.run([*command[:-2], "--out="], cwd=REPO, capture_output=True, text=True)
    assert again.returncode == 2
    assert again.stderr.strip() == (
        "error: --out is missing: name the folder to write, e.g. --out=models/a"
    )


@pytest.mark.parity
def test_transformers_reads_it(run, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "out"
    export(typed(small_config()), str(run / "run"), str(out), max_shard_gb=1e-4)
    theirs, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "You are in a room."}], add_generation_prompt=True
    )["input_ids"]
    tokens = np.array([ids], np.int32)
    config, params = load_hf(out)
    model = build(config)
    hidden = model.hidden(params, tokens, np.array([[tokens.size]], np.int32))
    ours = jnp.einsum("nld,vd->nlv", hidden, model.head(params))
    with torch.no_grad():
        want = theirs.eval()(torch.from_numpy(tokens).long()).logits.numpy()
    assert np.std(want) > 0.1
    np.testing.assert_allclose(ours, want, atol=1e-5 * max(1, np.std(want)))
