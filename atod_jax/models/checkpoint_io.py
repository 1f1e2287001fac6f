"""Hugging Face folders <-> parameter trees, so that transformers loads what is trained here.

This file reads configs and writes folders; `loading.load_sharded` reads weights.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from safetensors.numpy import save_file

from atod_jax.models import families
from atod_jax.models.block import ModelConfig
from atod_jax.models.family import Entry
from atod_jax.models.weights import INDEX, SINGLE, read_json
from atod_jax.models.written import require_place
from atod_jax.sums import seal

_CONFIG, _GENERATION = "config.json", "generation_config.json"


class Source(NamedTuple):
    """What the folder of a published model says beside its weights, kept for exports."""

    config: dict[str, Any]  # the fields of config.json
    generation: bytes | None  # generation_config.json as it is, if there is one


def read_source(path: str | Path) -> Source:
    """Both files, read when the model is: at the end of a run the folder may be gone.

    Raises:
      FileNotFoundError: no such folder, or no config.json in it.
      ValueError: config.json is corrupt.
    """
    folder, generation = Path(path), Path(path) / _GENERATION
    found = generation.read_bytes() if generation.is_file() else None
    return Source(read_json(folder / _CONFIG), found)


def read_config(path: str | Path, *, dtype: str = "float32") -> ModelConfig:
    """The config of a checkpoint folder; `dtype` is the type the model will compute in.

    Raises:
      FileNotFoundError: no such folder, or no config.json in it.
      ValueError: the config is corrupt or unsupported.
    """
    file = Path(path) / _CONFIG
    return families.config_from_hf(read_json(file), dtype=dtype, file=str(file))


def save_hf(
    path: str | Path,
    config: ModelConfig,
    params: Mapping[str, Any],
    *,
    tokenizer: Any = None,
    source: Source | None = None,
    shard_bytes: int = 4 << 30,
) -> None:
    """Writes a folder that transformers' `from_pretrained` of that family loads.

    The folder appears atomically: it is written next to `path`, listed in SHA256SUMS and renamed.
    All processes have to call this; the first one writes.

    Args:
      path: the folder to make; an earlier export there is replaced.
      config: the architecture.
      params: as `loading.load_sharded` returns them, or NumPy; saved in their own type.
      tokenizer: of transformers; written into the same folder, its special ids into the config.
      source: of the folder the model was loaded from; what it says is kept where it has not
        changed.
      shard_bytes: start another file once one holds this much.

    Raises:
      ValueError: `params` do not fit `config` or are not finite, or something at `path` would be
        lost.
    """
    if jax.process_index():  # takes part in gathering what is spread over processes, no more
        for _ in _shards(config, params, shard_bytes):
            pass
        return
    folder = require_place(path, "export")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        dtype = _write_tensors(work, config, params, shard_bytes)
        fields = families.config_to_hf(config, dtype=dtype, source=source and source.config)
        if tokenizer is not None:
            # without the end id, generate() would never stop
            for name in ("eos_token_id", "pad_token_id"):
                fields.setdefault(name, getattr(tokenizer, name))
            tokenizer.save_pretrained(work)
        if source is not None and source.generation is not None:
            (work / _GENERATION).write_bytes(source.generation)
        (work / _CONFIG).write_text(json.dumps(fields, indent=2) + "\n")
        work.chmod(0o755)  # mkdtemp and safetensors make private folders and files
        for file in work.iterdir():
            file.chmod(0o644)
        seal(work)
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
    value = _whole(node[entry.position])
    if entry.inputs:
        value = value.reshape(entry.hf_shape[::-1]).T
    return np.ascontiguousarray(value.reshape(entry.hf_shape))


def _whole(x: Any) -> np.ndarray:
    """An array as NumPy, wherever its parts are."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)


def _shards(
    config: ModelConfig, params: Mapping[str, Any], shard_bytes: int
) -> Iterator[dict[str, np.ndarray]]:
    shard: dict[str, np.ndarray] = {}
    held = 0
    for entry in families.tensor_map(config):
        value = _take(params, entry)
        if not np.isfinite(value).all():
            raise ValueError(
                f"{entry.hf_name} holds numbers that are not finite; take other weights"
            )
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
