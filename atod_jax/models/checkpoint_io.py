"""Hugging Face folders <-> parameter trees, so that transformers loads what is trained here.

Parameters are read as NumPy arrays (`load_hf`) or straight onto the devices of a mesh
(`load_sharded`), which never holds more than one tensor of one layer in host memory beside them.
"""

import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import save_file

from atod_jax.models import families
from atod_jax.models.family import Entry
from atod_jax.models.transformer import ModelConfig
from atod_jax.models.weights import INDEX, SINGLE, Box, Weights, read_json


def read_config(path: str | Path, *, dtype: str = "float32") -> ModelConfig:
    """The config of a checkpoint folder; `dtype` is the type the model will compute in.

    Raises:
      FileNotFoundError: no such folder, or no config.json in it.
      ValueError: the config is corrupt or unsupported.
    """
    return families.config_from_hf(read_json(Path(path) / "config.json"), dtype=dtype)


def load_hf(path: str | Path, *, dtype: str = "float32") -> tuple[ModelConfig, dict[str, Any]]:
    """Reads a checkpoint folder (one safetensors file, or several with an index) into NumPy.

    Args:
      path: the folder with config.json.
      dtype: of the returned parameters, "float32" or "bfloat16"; also the model's compute type.

    Returns:
      The config and the parameters as NumPy arrays.

    Raises:
      FileNotFoundError: no such folder, or a file of it is missing.
      ValueError: a file is corrupt, the config is unsupported, or the tensors are not exactly those
        the config implies.
    """
    config = read_config(path, dtype=dtype)
    weights = Weights(Path(path), config)
    flat = {
        name: weights.block(name, tuple((0, n) for n in shape), dtype)
        for name, shape in weights.shapes().items()
    }
    return config, unflatten_dict(flat)


def load_sharded(
    path: str | Path,
    config: ModelConfig,
    shardings: Callable[[Any], Any],
    *,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Reads a checkpoint folder onto devices; each process reads what its devices hold.

    Args:
      path: the folder.
      config: as `read_config` gives it.
      shardings: tree of ShapeDtypeStruct -> tree of NamedSharding.
      dtype: of the parameters.

    Raises:
      FileNotFoundError, ValueError: as `load_hf`.
    """
    weights = Weights(Path(path), config)
    shapes = {k: jax.ShapeDtypeStruct(v, dtype) for k, v in weights.shapes().items()}
    places = shardings(unflatten_dict(shapes))
    flat = {}
    for name, like in shapes.items():
        place = functools.reduce(lambda tree, key: tree[key], name, places)
        read = _assemble if name[0] == "layers" else _place
        flat[name] = read(functools.partial(weights.block, name), like, place)
    return unflatten_dict(flat)


def _place(read: Callable[..., np.ndarray], like: jax.ShapeDtypeStruct, place: Any) -> jax.Array:
    """One array from its parts; devices that hold the same part share one reading of it."""
    block = functools.cache(lambda box: read(box, like.dtype))

    def callback(index: tuple[slice, ...]) -> np.ndarray:
        return block(tuple(part.indices(n)[:2] for part, n in zip(index, like.shape)))

    return jax.make_array_from_callback(like.shape, place, callback)


def _assemble(read: Callable[..., np.ndarray], like: jax.ShapeDtypeStruct, place: Any) -> jax.Array:
    """A stacked parameter, layer by layer into one device buffer."""
    axes = (*place.spec, *[None] * (len(like.shape) - len(place.spec)))
    layer_place = NamedSharding(place.mesh, PartitionSpec(*axes[1:]))
    layer_like = jax.ShapeDtypeStruct(like.shape[1:], like.dtype)
    stack = jax.jit(functools.partial(jnp.zeros, like.shape, like.dtype), out_shardings=place)()
    for i in range(like.shape[0]):

        def read_layer(box: Box, dtype: Any, i: int = i) -> np.ndarray:
            return read(((i, i + 1), *box), dtype)[0]

        layer = _place(read_layer, layer_like, layer_place)
        stack = jax.block_until_ready(_write(stack, layer, jnp.int32(i), place=place))
    return stack


@functools.partial(jax.jit, static_argnames="place", donate_argnames="stack")
def _write(stack: jax.Array, layer: jax.Array, i: jax.Array, *, place: Any) -> jax.Array:
    stack = jax.lax.dynamic_update_index_in_dim(stack, layer, i, axis=0)
    return jax.lax.with_sharding_constraint(stack, place)


def save_hf(
    path: str | Path,
    config: ModelConfig,
    params: Mapping[str, Any],
    *,
    tokenizer: Any = None,
    shard_bytes: int = 4 << 30,
) -> None:
    """Writes a folder that transformers' `from_pretrained` of that family loads.

    The folder appears complete or not at all: it is written next to `path` and renamed.

    Args:
      path: the folder to make; an earlier checkpoint there is replaced.
      config: the architecture.
      params: as `load_hf` returns them, on any device; saved in their own type.
      tokenizer: anything with `save_pretrained(folder)`; written into the same folder.
      shard_bytes: start another file once one holds this much.

    Raises:
      FileExistsError: `path` exists and is not a checkpoint folder.
      ValueError: `params` do not fit `config`.
    """
    folder = Path(path)
    if folder.exists() and not (folder / "config.json").is_file():
        raise FileExistsError(f"{folder} exists and holds no config.json; not replacing it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        dtype = _write_tensors(work, config, params, shard_bytes)
        config_json = families.config_to_hf(config, dtype=dtype)
        (work / "config.json").write_text(json.dumps(config_json, indent=2) + "\n")
        if tokenizer is not None:
            tokenizer.save_pretrained(work)
        work.chmod(0o755)  # mkdtemp and safetensors make private folders and files
        for file in work.iterdir():
            file.chmod(0o644)
        _swap_in(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _take(params: Mapping[str, Any], entry: Entry) -> np.ndarray:
    """One tensor in the published layout."""
    node: Any = params
    for name in entry.path:
        if name not in node:
            raise ValueError(f"params lack {'/'.join(entry.path)}, which the config implies")
        node = node[name]
    if node.shape != (*entry.stack, *entry.shape):
        raise ValueError(
            f"{'/'.join(entry.path)} has shape {node.shape}, "
            f"the config implies {(*entry.stack, *entry.shape)}"
        )
    value = np.asarray(node[entry.index])
    if entry.inputs:
        value = value.reshape(entry.hf_shape[::-1]).T
    return np.ascontiguousarray(value.reshape(entry.hf_shape))


def _shards(
    config: ModelConfig, params: Mapping[str, Any], shard_bytes: int
) -> Iterator[dict[str, np.ndarray]]:
    shard: dict[str, np.ndarray] = {}
    held = 0
    for entry in families.tensor_map(config):
        value = _take(params, entry)
        if shard and held + value.nbytes > shard_bytes:
            yield shard
            shard, held = {}, 0
        shard[entry.hf_name] = value
        held += value.nbytes
    yield shard


def _write_tensors(
    folder: Path, config: ModelConfig, params: Mapping[str, Any], shard_bytes: int
) -> str:
    """Writes model.safetensors, or numbered shards and their index; returns the tensors' type."""
    names: list[list[str]] = []
    total, dtypes = 0, set()
    for number, shard in enumerate(_shards(config, params, shard_bytes), start=1):
        save_file(shard, folder / f"{number}.part", metadata={"format": "pt"})
        names.append(list(shard))
        total += sum(x.nbytes for x in shard.values())
        dtypes |= {str(x.dtype) for x in shard.values()}
    if len(dtypes) != 1:
        raise ValueError(f"params mix the types {sorted(dtypes)}; cast them to one before saving")
    if len(names) == 1:
        (folder / "1.part").rename(folder / SINGLE)
        return dtypes.pop()
    weight_map = {}
    for number, tensors in enumerate(names, start=1):
        file = f"model-{number:05d}-of-{len(names):05d}.safetensors"
        (folder / f"{number}.part").rename(folder / file)
        weight_map.update(dict.fromkeys(tensors, file))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return dtypes.pop()


def _swap_in(work: Path, folder: Path) -> None:
    """Renames `work` to `folder`; an earlier folder is moved aside first and then deleted."""
    if not folder.exists():
        os.replace(work, folder)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
    os.replace(folder, aside)  # an empty directory may be replaced
    os.replace(work, folder)
    shutil.rmtree(aside)
