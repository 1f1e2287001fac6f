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
from atod_jax.models.checkpoint_io import read_source, save_hf
from atod_jax.models.families import tensor_map
from atod_jax.models.rope import Linear

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


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, dtype):
    params = jax.tree.map(lambda x: x.astype(dtype), make_params(CONFIG))
    params["norm"]["scale"][2] = np.inf
    with pytest.raises(ValueError, match=r"model.norm.weight holds numbers that are not finite"):
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[1]", r"holds no JSON object but \[1\]"),
    ],
)
def test_corrupt_config(folder, text, message):
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=f"config.json {message}"):
        load_hf(folder)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks_are_read(folder, encoding):
    file = folder / "config.json"
    file.write_text(file.read_text(), encoding=encoding)
    assert load_hf(folder)[0] == CONFIG


@pytest.mark.parametrize("places", [None, ["a"], {"model.norm.weight": 1}])
def test_an_index_without_file_names(folder, places):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(ValueError, match=r"index\.json has no weight_map of file names"):
        load_hf(folder)


def test_buffers_of_older_files_are_ignored(folder):
    names = ("model.rotary_emb.inv_freq", "model.layers.1.self_attn.rotary_emb.inv_freq")
    edit_tensors(folder, lambda t: t.update({name: np.ones(3, np.float32) for name in names}))
    jax.tree.map(np.testing.assert_array_equal, load_hf(folder)[1], make_params(CONFIG))


NORM, MATRIX = "model.norm.weight", "model.layers.1.mlp.down_proj.weight"


def test_integers_are_refused_by_name(folder):
    edit_tensors(folder, lambda t: t.update({MATRIX: t[MATRIX].astype(np.int8)}))
    with pytest.raises(ValueError, match=rf"{MATRIX} is of type I8, not one of F64, F32"):
        load_hf(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [NORM, MATRIX, "model.embed_tokens.weight"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_what_is_not_finite_is_refused_by_name(folder, dtype, name, value):
    def spoil(tensors):
        tensors[name].flat[-1] = value

    edit_tensors(folder, spoil)
    with pytest.raises(ValueError, match=rf"{name} holds numbers that are not finite in {dtype}"):
        load_hf(folder, dtype=dtype)


def test_what_is_too_large_for_the_type_is_refused(folder):
    edit_tensors(folder, lambda t: t.update({NORM: t[NORM].astype(np.float64) + 1e300}))
    with pytest.raises(ValueError, match=rf"{NORM} holds numbers that are not finite in float32"):
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


def test_params_that_do_not_fit_the_config_are_refused(tmp_path):
    params = make_params(CONFIG)
    with pytest.raises(ValueError, match=r"layers/attn_norm/scale has shape \(2, 8\).*\(3, 8\)"):
        save_hf(tmp_path / "m", dataclasses.replace(CONFIG, num_layers=4), params)
    del params["head"]
    with pytest.raises(ValueError, match=r"params lack head/embedding"):
        save_hf(tmp_path / "m", CONFIG, params)
    assert list(tmp_path.iterdir()) == []


SOURCE = {
    "model_type": "qwen3", "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 6, "intermediate_size": 10, "vocab_size": 11,
    "rope_theta": 1e6, "max_position_embeddings": 777, "eos_token_id": [3, 4], "torch_dtype":
    "bfloat16", "architectures": ["Qwen3ForCausalLM"], "anything": {"else": None},
}  # fmt: skip


def test_a_save_keeps_what_the_source_says(tmp_path):
    """All but the type of the weights, and what of the architecture has changed."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "config.json").write_text(json.dumps(SOURCE))
    (tmp_path / "source" / "generation_config.json").write_text('{"top_p": 0.8}')
    options = {"tokenizer": FakeTokenizer(), "source": read_source(tmp_path / "source")}
    save_hf(tmp_path / "m", CONFIG, make_params(CONFIG), **options)
    fields = json.loads((tmp_path / "m" / "config.json").read_text())
    assert fields == SOURCE | {"torch_dtype": "float32", "pad_token_id": 0}
    assert (tmp_path / "m" / "generation_config.json").read_text() == '{"top_p": 0.8}'
    assert load_hf(tmp_path / "m")[0] == CONFIG
    longer = dataclasses.replace(CONFIG, vocab_size=16, rope_scaling=Linear(2.0))
    save_hf(tmp_path / "m", longer, make_params(longer), **options)
    fields = json.loads((tmp_path / "m" / "config.json").read_text())
    rope = {"rope_type": "linear", "rope_theta": 1e6, "factor": 2.0}
    changes = {"torch_dtype": "float32", "pad_token_id": 0, "vocab_size": 16}
    assert fields == SOURCE | changes | {"rope_parameters": rope}
    assert load_hf(tmp_path / "m")[0] == longer


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
    (tmp_path / "notes" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"notes holds config.json, which no export has written"):
        save_hf(tmp_path / "notes", CONFIG, make_params(CONFIG))
    assert (tmp_path / "notes" / "config.json").read_text() == "{}"
