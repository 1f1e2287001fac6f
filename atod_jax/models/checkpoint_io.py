"""Hugging Face folders <-> parameter dicts, so that transformers loads what is trained here.

Everything is NumPy: the caller decides where parameters live (`jax.device_put(params, shardings)`).
Nothing is guessed: a tensor that is missing, unknown or of the wrong shape is an error.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy, which safetensors needs to read it)
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from atod_jax.models import qwen3
from atod_jax.models.transformer import ModelConfig

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def load_hf(path: str | Path, *, dtype: str = "float32") -> tuple[ModelConfig, dict[str, Any]]:
    """Reads a Qwen3 checkpoint folder (one safetensors file, or several with an index).

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
    folder = Path(path)
    config = qwen3.config_from_hf(_read_json(folder / "config.json"), dtype=dtype)
    with ExitStack() as stack:
        tensors = _open_tensors(folder, stack)
        entries = list(qwen3.tensor_map(config))
        _check_names(folder, entries, tensors, tied=config.tie_embeddings)
        params: dict[str, Any] = {}
        for entry in entries:
            _place(params, config, entry, _checked(folder, tensors[entry.hf_name], entry))
        if "lm_head.weight" in tensors and config.tie_embeddings:
            _check_tied(folder, tensors["lm_head.weight"], params["embed"]["embedding"])
    return config, params


def save_hf(
    path: str | Path,
    config: ModelConfig,
    params: Mapping[str, Any],
    *,
    tokenizer: Any = None,
    shard_bytes: int = 4 << 30,
) -> None:
    """Writes a folder that `transformers.Qwen3ForCausalLM.from_pretrained` loads.

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
        config_json = qwen3.config_to_hf(config, dtype=dtype)
        (work / "config.json").write_text(json.dumps(config_json, indent=2) + "\n")
        if tokenizer is not None:
            tokenizer.save_pretrained(work)
        work.chmod(0o755)  # mkdtemp and safetensors make private folders and files
        for file in work.iterdir():
            file.chmod(0o644)
        _swap_in(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


# ------------------------------------------------------------------- reading


def _read_json(file: Path) -> dict[str, Any]:
    if not file.parent.is_dir():
        raise FileNotFoundError(f"no checkpoint folder {file.parent}")
    if not file.is_file():
        raise FileNotFoundError(f"{file.parent} holds no {file.name}; give a Hugging Face folder")
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON ({error}); copy the folder again") from error


def _open_tensors(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Tensor name -> a lazy slice of it."""
    if (folder / _SINGLE).is_file():
        files = [_SINGLE]
    elif (folder / _INDEX).is_file():
        files = sorted(set(_read_json(folder / _INDEX)["weight_map"].values()))
    else:
        raise FileNotFoundError(f"{folder} holds neither {_SINGLE} nor {_INDEX}")
    tensors = {}
    for name in files:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} lacks {name}, which its index names")
        try:
            handle = stack.enter_context(safe_open(folder / name, framework="numpy"))
        except SafetensorError as error:
            raise ValueError(f"{folder / name} is corrupt ({error}); copy it again") from error
        tensors.update({key: handle.get_slice(key) for key in handle.keys()})  # noqa: SIM118
    return tensors


def _check_names(
    folder: Path, entries: list[qwen3.Entry], tensors: Mapping[str, Any], *, tied: bool
) -> None:
    wanted = {entry.hf_name for entry in entries}
    allowed = wanted | {"lm_head.weight"} if tied else wanted
    missing, unexpected = sorted(wanted - set(tensors)), sorted(set(tensors) - allowed)
    if missing or unexpected:
        raise ValueError(
            f"{folder}: the tensors do not fit config.json: {len(missing)} missing "
            f"{missing[:5]}, {len(unexpected)} unexpected {unexpected[:5]}"
        )


def _checked(folder: Path, tensor: Any, entry: qwen3.Entry) -> np.ndarray:
    found = tuple(tensor.get_shape())
    if found != entry.hf_shape:
        raise ValueError(
            f"{folder}: {entry.hf_name} has shape {found}, config.json implies {entry.hf_shape}"
        )
    return tensor[...]


def _place(
    params: dict[str, Any], config: ModelConfig, entry: qwen3.Entry, value: np.ndarray
) -> None:
    """Copies one tensor into its parameter, which is allocated whole on first use."""
    value = (value.T if entry.transposed else value).reshape(entry.shape)
    node = params
    for name in entry.path[:-1]:
        node = node.setdefault(name, {})
    name = entry.path[-1]
    if entry.layer is None:
        node[name] = np.array(value, config.dtype, order="C")
        return
    if name not in node:
        node[name] = np.empty((config.num_layers - 1, *entry.shape), config.dtype)
    node[name][entry.layer] = value


def _check_tied(folder: Path, head: Any, embedding: np.ndarray) -> None:
    if not np.array_equal(head[...].astype(embedding.dtype), embedding):
        raise ValueError(f"{folder}: tie_word_embeddings is true but lm_head.weight differs")


# ------------------------------------------------------------------- writing


def _take(params: Mapping[str, Any], config: ModelConfig, entry: qwen3.Entry) -> np.ndarray:
    """One tensor in the published layout."""
    node: Any = params
    for name in entry.path:
        if name not in node:
            raise ValueError(f"params lack {'/'.join(entry.path)}, which the config implies")
        node = node[name]
    stack = () if entry.layer is None else (config.num_layers - 1,)
    if node.shape != (*stack, *entry.shape):
        raise ValueError(
            f"{'/'.join(entry.path)} has shape {node.shape}, "
            f"the config implies {(*stack, *entry.shape)}"
        )
    value = np.asarray(node if entry.layer is None else node[entry.layer])
    return np.ascontiguousarray(
        value.reshape(entry.hf_shape[::-1]).T if entry.transposed else value
    )


def _shards(
    config: ModelConfig, params: Mapping[str, Any], shard_bytes: int
) -> Iterator[dict[str, np.ndarray]]:
    shard: dict[str, np.ndarray] = {}
    for entry in qwen3.tensor_map(config):
        value = _take(params, config, entry)
        if shard and sum(x.nbytes for x in shard.values()) + value.nbytes > shard_bytes:
            yield shard
            shard = {}
        shard[entry.hf_name] = value
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
        (folder / "1.part").rename(folder / _SINGLE)
        return dtypes.pop()
    weight_map = {}
    for number, tensors in enumerate(names, start=1):
        file = f"model-{number:05d}-of-{len(names):05d}.safetensors"
        (folder / f"{number}.part").rename(folder / file)
        weight_map.update(dict.fromkeys(tensors, file))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / _INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
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
