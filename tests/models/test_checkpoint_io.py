"""Hugging Face folders: round trips, strict accounting, clear errors, atomic writes."""

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hf_folders import load_hf
from safetensors.numpy import load_file, save_file

from atod_jax.models import ModelConfig, build
from atod_jax.models.checkpoint_io import save_hf
from atod_jax.models.families import config_from_hf, config_to_hf, tensor_map

CONFIG = ModelConfig(
    vocab_size=11,
    hidden_size=8,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    intermediate_size=10,
    rope_theta=1e6,
    rms_eps=1e-6,
    tie_embeddings=False,
)


def make_params(config: ModelConfig):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(build(config).init, jax.random.key(0))
    return jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), shapes)


@pytest.fixture
def folder(tmp_path):
    save_hf(tmp_path / "model", CONFIG, make_params(CONFIG))
    return tmp_path / "model"


def edit_config(folder, **changes):
    file = folder / "config.json"
    fields = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in {**fields, **changes}.items() if v != "drop"}))


def edit_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard_bytes", [1 << 30, 1000])
def test_round_trip(layers, tied, shard_bytes, tmp_path):
    config = dataclasses.replace(CONFIG, num_layers=layers, tie_embeddings=tied)
    params = make_params(config)
    save_hf(tmp_path / "m", config, params, shard_bytes=shard_bytes)
    assert (tmp_path / "m" / "model.safetensors.index.json").exists() == (shard_bytes == 1000)
    loaded_config, loaded = load_hf(tmp_path / "m")
    assert loaded_config == config
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_layout_is_the_published_one(folder):
    """[out, in] matrices, heads outermost in `out`; the last layer is the highest number."""
    tensors = load_file(folder / "model.safetensors")
    params = make_params(CONFIG)
    query = tensors["model.layers.1.self_attn.q_proj.weight"]
    assert query.shape == (24, 8)
    np.testing.assert_array_equal(query[6:12], params["layers"]["attn"]["q"]["kernel"][1, :, 1].T)
    out = tensors["model.layers.2.self_attn.o_proj.weight"]
    np.testing.assert_array_equal(out[:, 6:12], params["last"]["attn"]["o"]["kernel"][1].T)
    assert len(tensors) == 3 + 11 * 3


def test_every_parameter_has_one_tensor():
    for tied in (True, False):
        config = dataclasses.replace(CONFIG, tie_embeddings=tied)
        entries = list(tensor_map(config))
        assert len({e.hf_name for e in entries}) == len(entries)
        flat, _ = jax.tree_util.tree_flatten_with_path(make_params(config))
        ours = {tuple(k.key for k in path): x.shape for path, x in flat}
        mapped = {e.path: (*e.stack, *e.shape) for e in entries}
        assert mapped == ours


def test_bfloat16_both_ways(tmp_path):
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), make_params(CONFIG))
    save_hf(tmp_path / "m", CONFIG, half)
    assert json.loads((tmp_path / "m" / "config.json").read_text())["dtype"] == "bfloat16"
    config, same = load_hf(tmp_path / "m", dtype="bfloat16")
    assert config.dtype == "bfloat16"
    assert {x.dtype for x in jax.tree.leaves(same)} == {np.dtype(ml_dtypes.bfloat16)}
    _, wide = load_hf(tmp_path / "m")
    assert {x.dtype for x in jax.tree.leaves(wide)} == {np.dtype(np.float32)}
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.astype(np.float32), b), same, wide)


def test_mixed_types_are_refused(tmp_path):
    params = make_params(CONFIG)
    params["norm"]["scale"] = params["norm"]["scale"].astype(np.float16)
    with pytest.raises(ValueError, match=r"float16.*float32"):
        save_hf(tmp_path / "m", CONFIG, params)
    assert list(tmp_path.iterdir()) == []


def test_missing_folder_and_files(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint folder .*nowhere"):
        load_hf(tmp_path / "nowhere")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither model.safetensors nor"):
        load_hf(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no config.json"):
        load_hf(folder)


def test_missing_shard(tmp_path):
    save_hf(tmp_path / "m", CONFIG, make_params(CONFIG), shard_bytes=4000)
    gone = sorted((tmp_path / "m").glob("model-*"))[1]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=gone.name):
        load_hf(tmp_path / "m")


@pytest.mark.parametrize("keep", [4, 3000])
def test_truncated_weights(folder, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model.safetensors is corrupt"):
        load_hf(folder)


def test_corrupt_config(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is not valid JSON"):
        load_hf(folder)


def test_missing_unexpected_and_misshapen_tensors(folder):
    edit_tensors(folder, lambda t: t.pop("model.norm.weight"))
    with pytest.raises(ValueError, match=r"1 missing \['model.norm.weight'\], 0 unexpected"):
        load_hf(folder)
    edit_tensors(folder, lambda t: t.update({"model.norm.weight": np.ones(8, np.float32)}))
    edit_tensors(folder, lambda t: t.update({"model.norm.bias": np.ones(8, np.float32)}))
    with pytest.raises(ValueError, match=r"0 missing \[\], 1 unexpected \['model.norm.bias'\]"):
        load_hf(folder)
    edit_tensors(folder, lambda t: t.pop("model.norm.bias"))
    edit_tensors(folder, lambda t: t.update({"lm_head.weight": np.ones((12, 8), np.float32)}))
    with pytest.raises(ValueError, match=r"lm_head.weight has shape \(12, 8\).*\(11, 8\)"):
        load_hf(folder)


def test_tied_checkpoint_may_repeat_its_embedding(tmp_path):
    config = dataclasses.replace(CONFIG, tie_embeddings=True)
    params = make_params(config)
    save_hf(tmp_path / "m", config, params)
    table = params["embed"]["embedding"]
    edit_tensors(tmp_path / "m", lambda t: t.update({"lm_head.weight": table}))
    assert "head" not in load_hf(tmp_path / "m")[1]
    edit_tensors(tmp_path / "m", lambda t: t.update({"lm_head.weight": table + 1}))
    with pytest.raises(ValueError, match=r"lm_head.weight differs"):
        load_hf(tmp_path / "m")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type='llama'"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"use_sliding_window": True}, "use_sliding_window=True"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"layer_types": ["sliding_attention"]}, "layer_types"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "rope type 'yarn'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "rope type 'linear'"),
        ({"rope_parameters": None, "rope_theta": None}, "lacks rope_theta"),
        ({"head_dim": "drop"}, r"lacks \['head_dim'\]"),
    ],
)
def test_unsupported_configs_are_refused(folder, changes, message):
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load_hf(folder)


def test_config_round_trip_and_older_rope_fields():
    assert config_from_hf(config_to_hf(CONFIG, dtype="float32")) == CONFIG
    older = config_to_hf(CONFIG, dtype="float32")
    older.pop("rope_parameters")
    older |= {"rope_scaling": None, "rope_theta": 5000000}
    assert config_from_hf(older).rope_theta == 5e6


def test_params_that_do_not_fit_the_config_are_refused(tmp_path):
    params = make_params(CONFIG)
    with pytest.raises(ValueError, match=r"layers/attn_norm/scale has shape \(2, 8\).*\(3, 8\)"):
        save_hf(tmp_path / "m", dataclasses.replace(CONFIG, num_layers=4), params)
    del params["head"]
    with pytest.raises(ValueError, match=r"params lack head/embedding"):
        save_hf(tmp_path / "m", CONFIG, params)
    assert list(tmp_path.iterdir()) == []


class BrokenTokenizer:
    eos_token_id, pad_token_id = 2, 0

    def save_pretrained(self, folder):
        raise OSError("disk full")


class FakeTokenizer:
    eos_token_id, pad_token_id = 2, 0

    def save_pretrained(self, folder):
        (folder / "tokenizer.json").write_text("{}")


def test_a_failed_save_leaves_the_earlier_checkpoint(folder):
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    with pytest.raises(OSError, match="disk full"):
        save_hf(folder, CONFIG, make_params(CONFIG), tokenizer=BrokenTokenizer())
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before
    assert [f.name for f in folder.parent.iterdir()] == ["model"]


def test_a_save_replaces_an_earlier_checkpoint_only(folder, tmp_path):
    save_hf(folder, CONFIG, make_params(CONFIG), tokenizer=FakeTokenizer())
    assert (folder / "tokenizer.json").exists()
    assert [f.name for f in folder.parent.iterdir()] == ["model"]
    assert os.stat(folder).st_mode & 0o777 == 0o755
    (tmp_path / "notes").mkdir()
    with pytest.raises(FileExistsError, match=r"notes exists and holds no config.json"):
        save_hf(tmp_path / "notes", CONFIG, make_params(CONFIG))
