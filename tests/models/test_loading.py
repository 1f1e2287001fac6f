"""Weights onto devices: the same numbers, only the parts asked for, no second copy in memory."""

import dataclasses
import functools
import os
import socket
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hf_folders import load_hf
from huggingface_hub import constants
from tiny_models import FAMILIES, random_lines

from atod_jax.models import AXES, ModelConfig, build, hub, loading
from atod_jax.models.checkpoint_io import read_config, save_hf
from atod_jax.models.loading import load_sharded, to_int8
from atod_jax.models.transformer import resize_vocabulary
from atod_jax.models.weights import Weights
from atod_jax.sharding import RULES, make_mesh, param_shardings

BASE = FAMILIES["qwen3"]


def saved(folder, config: ModelConfig, *, shard_bytes: int = 6000):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(build(config).init, jax.random.key(0))
    params = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), shapes)
    save_hf(folder, config, params, shard_bytes=shard_bytes)
    return folder


def places(shape: dict[str, int], axes=AXES):
    return functools.partial(param_shardings, axes=axes, rules=RULES, mesh=make_mesh(shape))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "mesh", [{"data": 8}, {"fsdp": 2, "tensor": 2, "expert": 2}, {"fsdp": 4, "tensor": 2}]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_mesh_they_are_what_numpy_reads(family, mesh, dtype, tmp_path):
    folder = saved(tmp_path / "m", FAMILIES[family])
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    want = load_hf(folder, dtype=dtype)[1]
    put = places(mesh)
    got = load_sharded(folder, read_config(folder), put, dtype=dtype)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for ours, theirs, place in zip(*map(jax.tree.leaves, (got, want, put(want)))):
        assert ours.dtype == theirs.dtype == dtype
        assert ours.sharding.is_equivalent_to(place, ours.ndim)
        np.testing.assert_array_equal(ours, theirs)


def test_a_single_layer_has_nothing_to_stack(tmp_path):
    folder = saved(tmp_path / "m", dataclasses.replace(BASE, num_layers=1, tie_embeddings=True))
    got = load_sharded(folder, read_config(folder), places({"data": 8}))
    jax.tree.map(np.testing.assert_array_equal, got, load_hf(folder)[1])


def test_devices_read_their_own_parts_once(tmp_path, monkeypatch):
    folder = saved(tmp_path / "m", FAMILIES["qwen3_moe"])
    read, inner = {}, Weights.block

    def block(self, path, box, dtype):
        out = inner(self, path, box, dtype)
        read.setdefault(path, []).append(out.size)
        return out

    monkeypatch.setattr(Weights, "block", block)
    monkeypatch.setattr(loading, "SMALL", 0)  # as large stacks are read, layer by layer
    got = load_sharded(folder, read_config(folder), places({"data": 2, "fsdp": 2, "expert": 2}))
    for path, sizes in read.items():
        leaf = functools.reduce(lambda tree, key: tree[key], path, got)
        part = leaf.addressable_shards[0].data.size
        layers = leaf.shape[0] if path[0] == "layers" else 1
        assert max(sizes) == part // layers, path
        assert sum(sizes) == leaf.size, path  # nothing twice, though two devices hold each part


def test_an_axis_that_is_not_stored_as_one_cannot_be_split(tmp_path):
    folder = saved(tmp_path / "m", BASE)
    axes = [(r"last/attn/o/kernel", (None, "heads", None)), *AXES]
    axes = [a for n, a in enumerate(axes) if n == 0 or a[0] != axes[0][0]]
    with pytest.raises(ValueError, match=r"o_proj.*axis 1 of \(4, 8, 16\) is not stored as one"):
        load_sharded(folder, read_config(folder), places({"data": 4, "tensor": 2}, axes))


def test_wrong_tensors_are_found_before_any_is_read(tmp_path, monkeypatch):
    folder = saved(tmp_path / "m", BASE)
    wider = dataclasses.replace(read_config(folder), num_layers=4)
    monkeypatch.setattr(Weights, "block", None)
    with pytest.raises(ValueError, match=r"11 missing \['model.layers.3.*0 unexpected"):
        load_sharded(folder, wider, places({"data": 8}))


ROOT = Path(__file__).resolve().parents[2]
PYTHONPATH = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
LARGE = dataclasses.replace(
    BASE, hidden_size=512, num_layers=9, head_dim=64, intermediate_size=4096, tie_embeddings=True
)
LOADING = """
import functools, resource, sys
import jax
from hf_folders import load_hf
from atod_jax.models import AXES
from atod_jax.models.checkpoint_io import read_config
from atod_jax.models.loading import load_sharded
from atod_jax.sharding import RULES, make_mesh, param_shardings

folder, how, room = sys.argv[1:]
put = functools.partial(
    param_shardings, axes=AXES, rules=RULES, mesh=make_mesh({"data": jax.device_count()})
)
jax.block_until_ready(jax.jit(lambda x: x + 1)(1.0))
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
limit = int(status["VmData"].split()[0]) * 1024 + int(room)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
if how != "whole":
    params = load_sharded(folder, read_config(folder), put, apart=how == "apart")
else:
    params = load_hf(folder)[1]
    params = jax.device_put(params, put(params))
print("loaded", sum(x.nbytes for x in jax.tree.leaves(jax.block_until_ready(params))))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of private memory are Linux's")
def test_beside_the_parameters_there_is_room_for_little_more_than_a_tensor(tmp_path):
    """A process that may hold the parameters and 96 MB loads them; with a host copy it cannot.

    Parameters are 241 MB, a stacked one up to 67 MB, the largest tensor 8 MB; the rest of the room
    is for compiled programs and the stacks of threads.
    """
    shapes = jax.eval_shape(build(LARGE).init, jax.random.key(0))
    ones = jax.tree.map(lambda x: np.ones(x.shape, ml_dtypes.bfloat16), shapes)
    save_hf(tmp_path / "m", LARGE, ones, shard_bytes=50 << 20)
    total = sum(4 * x.size for x in jax.tree.leaves(ones))

    def run(how: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", LOADING, str(tmp_path / "m"), how, str(total + (96 << 20))]
        env = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": PYTHONPATH}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)

    for how in ("stacked", "apart"):
        ours = run(how)
        assert f"loaded {total}" in ours.stdout, ours.stderr[-2000:]
    whole = run("whole")
    assert whole.returncode != 0
    assert "memory" in whole.stderr.lower()


TWO_PROCESSES = """
import functools, sys
import jax, numpy as np
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from hf_folders import load_hf
from atod_jax.models import AXES
from atod_jax.models.checkpoint_io import read_config, save_hf
from atod_jax.models.loading import load_sharded
from atod_jax.models.weights import Weights
from atod_jax.sharding import RULES, make_mesh, param_shardings

source, target = sys.argv[3:]
mesh = make_mesh({"fsdp": 4})
put = functools.partial(param_shardings, axes=AXES, rules=RULES, mesh=mesh)
read, inner = [], Weights.block
def block(self, path, box, dtype):
    out = inner(self, path, box, dtype)
    if path == ("embed", "embedding"):
        read.append(out.shape)
    return out
Weights.block = block
params = load_sharded(source, read_config(source), put)
Weights.block = inner
table, want = params["embed"]["embedding"], load_hf(source)[1]["embed"]["embedding"]
assert read == [(48, 4)] * 2, read
for part in table.addressable_shards:
    np.testing.assert_array_equal(part.data, want[part.index])
save_hf(target, read_config(source), params)
print("done")
"""


def test_two_processes_read_their_halves_and_write_one_folder(tmp_path):
    folder, out = saved(tmp_path / "m", FAMILIES["qwen3_moe"]), tmp_path / "out"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = "--xla_force_host_platform_device_count=2"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": PYTHONPATH}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, address, str(n), str(folder), str(out)],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for n in range(2)
    ]  # fmt: skip
    for child in children:
        said, wrong = child.communicate(timeout=300)
        assert "done" in said, wrong[-3000:]
    jax.tree.map(np.testing.assert_array_equal, load_hf(out)[1], load_hf(folder)[1])


# ------------------------------------------------------------------- integers


@pytest.mark.parametrize("axes", [(0,), (0, 1), (1,)])
def test_integers_are_within_half_a_scale(axes):
    kernel = np.random.default_rng(0).standard_normal((6, 5, 4)).astype(np.float32)
    kernel[:, :, 2] = 0
    whole, scale = to_int8(jnp.array(kernel), axes)
    assert whole.dtype == jnp.int8
    np.testing.assert_allclose(
        scale,
        np.abs(kernel).max(axis=axes, keepdims=True) / 127
        + (np.abs(kernel).max(axis=axes, keepdims=True) == 0),
        rtol=1e-6,
    )
    assert (np.abs(whole * scale - kernel) <= 0.5001 * scale).all()
    assert np.abs(whole * scale - kernel).max() > 0


@pytest.mark.parametrize("family", ["qwen2", "qwen3_moe"])
def test_a_model_kept_as_integers_computes_nearly_the_same(family, tmp_path):
    config = dataclasses.replace(FAMILIES[family], dtype="bfloat16")
    folder = saved(tmp_path / "m", config)
    put = places({"fsdp": 2, "tensor": 2, "expert": 2})
    exact, half, whole = (
        load_sharded(folder, config, put, dtype=dtype) for dtype in ("float32", "bfloat16", "int8")
    )
    types = {str(x.dtype): x.nbytes for x in jax.tree.leaves(whole["last"])}
    assert set(types) == {"int8", "float32", "bfloat16"}
    if family == "qwen3_moe":
        assert whole["last"]["moe"]["router"]["kernel"].dtype == jnp.bfloat16
        assert whole["layers"]["moe"]["gate"]["scale"].shape == (2, 4, 1, 24)
    hidden = jax.jit(lambda p: build(config).hidden(p, *random_lines(4)))
    want = np.asarray(hidden(exact), np.float32)

    def error(params) -> float:
        """Of the median token: a few may be sent to another expert."""
        got = np.asarray(hidden(params), np.float32)
        return float(np.median(np.linalg.norm(got - want, axis=-1) / np.linalg.norm(want, axis=-1)))

    assert 0 < error(whole) < 0.05
    assert error(half) < error(whole)


# ------------------------------------------------------------------- vocabularies and names


@pytest.mark.parametrize("rows", [40, 48, 56])
@pytest.mark.parametrize("tied", [True, False])
def test_a_vocabulary_is_cut_or_filled_up(rows, tied, tmp_path):
    config = dataclasses.replace(BASE, tie_embeddings=tied)
    folder = saved(tmp_path / "m", config)
    put = places({"data": 4, "tensor": 2})
    params = load_sharded(folder, read_config(folder), put)
    got = resize_vocabulary(params, rows, put)
    new = dataclasses.replace(config, vocab_size=rows)
    assert jax.tree.map(jnp.shape, got) == jax.tree.map(
        jnp.shape, jax.eval_shape(build(new).init, jax.random.key(0))
    )
    before, after = np.asarray(build(config).head(params)), np.asarray(build(new).head(got))
    np.testing.assert_array_equal(after[:48], before[:rows])
    assert not after[48:].any()
    assert got["embed"]["embedding"].sharding.spec[0] == "tensor"


def test_names_of_published_models():
    assert hub.is_name("Qwen/Qwen3-0.6B")
    for other in ("Qwen3-0.6B", "/models/qwen", "runs/a/b", "", "a/b/"):
        assert not hub.is_name(other)


def test_without_a_network_the_option_and_the_way_out_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"student\.path='org/absent': neither.*hf download org/absent"
    ):
        hub.snapshot("org/absent", "student.path")


def test_a_cached_model_is_its_folder(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **k: asked.append((a, k)) or str(tmp_path)
    )
    assert hub.snapshot("org/model", "student.path") == tmp_path
    ((name,), options) = asked[0]
    assert name == "org/model"
    assert "*.safetensors" in options["allow_patterns"]
