"""The tensors of a Hugging Face folder as blocks of our parameters, read only where asked for.

Nothing is guessed: a tensor that is missing, unknown or of the wrong shape is an error before any
is read. Files are opened for one block at a time, so no page of them stays mapped afterwards.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy, which safetensors needs to read it)
import numpy as np
from safetensors import SafetensorError, safe_open

from atod_jax.models.block import ModelConfig
from atod_jax.models.families import tensor_map
from atod_jax.models.family import Entry
from atod_jax.texts import read_object

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_HEAD = "lm_head.weight"
_DERIVED = re.compile(r"\brotary_emb\.\w+$")  # buffers that older files keep: no parameters
_FLOATS = ("F64", "F32", "F16", "BF16")
_CHUNK = 1 << 18  # numbers looked at together, so that they stay in a processor's cache
_EXPONENT = {"float32": (np.uint32, 0x7F800000), "bfloat16": (np.uint16, 0x7F80)}

Box = tuple[tuple[int, int], ...]  # (start, stop) along every axis of a block


class Weights:
    """What a checkpoint folder holds, checked against the config it is to be read with.

    Raises:
      FileNotFoundError: a file of the folder is missing.
      ValueError: a file is corrupt, or the tensors are not exactly those the config implies.
    """

    def __init__(self, folder: Path, config: ModelConfig):
        self._folder = folder
        self._entries: dict[tuple[str, ...], list[Entry]] = {}
        for entry in tensor_map(config):
            self._entries.setdefault(entry.path, []).append(entry)
        self._files, shapes = _survey(folder)
        self._check(shapes, tied=config.tie_embeddings)
        if config.tie_embeddings and _HEAD in self._files:
            self._check_tied()

    def shapes(self) -> dict[tuple[str, ...], tuple[int, ...]]:
        """Path of a parameter -> its shape."""
        return {path: (*e[0].stack, *e[0].shape) for path, e in self._entries.items()}

    def contracted(self, path: tuple[str, ...]) -> tuple[int, ...]:
        """The axes of a parameter that a matrix product sums over."""
        entry = self._entries[path][0]
        return tuple(range(len(entry.stack), len(entry.stack) + entry.inputs))

    def block(self, path: tuple[str, ...], box: Box, dtype: str) -> np.ndarray:
        """The part `box` of a parameter, converted to `dtype`; no other part is read.

        Raises:
          ValueError: the part cuts an axis that is not stored as one, such as that of `head_dim`,
            or a number in it is not finite in `dtype`.
        """
        entries = self._entries[path]
        depth = len(entries[0].stack)
        out = np.empty([stop - start for start, stop in box], dtype)
        with ExitStack() as stack:
            open_file = functools.cache(lambda name: _open(self._folder / name, stack))
            for entry in entries:
                stacked = list(zip(entry.position, box[:depth], strict=True))
                if all(start <= i < stop for i, (start, stop) in stacked):
                    tensor = open_file(self._files[entry.hf_name]).get_slice(entry.hf_name)
                    place = tuple(i - start for i, (start, _) in stacked)
                    with np.errstate(over="ignore"):  # what is too large is said with its name
                        out[place] = _read(tensor, entry, box[depth:])
                    _require_finite(out[place], entry.hf_name, self._folder)
        return out

    def _check(self, shapes: Mapping[str, tuple[int, ...]], *, tied: bool) -> None:
        wanted = {e.hf_name: e.hf_shape for entries in self._entries.values() for e in entries}
        allowed = set(wanted) | ({_HEAD} if tied else set())
        missing, unexpected = sorted(set(wanted) - set(shapes)), sorted(set(shapes) - allowed)
        if missing or unexpected:
            raise ValueError(
                f"{self._folder}: the tensors do not fit config.json: {len(missing)} missing "
                f"{missing[:20]}, {len(unexpected)} unexpected {unexpected[:20]}"
            )
        for name, shape in wanted.items():
            if shapes[name] != shape:
                raise ValueError(
                    f"{self._folder}: {name} has shape {shapes[name]}, config.json implies {shape}"
                )

    def _check_tied(self) -> None:
        """A repeated head must be the embedding; compared some rows at a time."""
        table = self._entries["embed", "embedding"][0].hf_name
        with ExitStack() as stack:
            open_file = functools.cache(lambda name: _open(self._folder / name, stack))
            ours, head = (open_file(self._files[n]).get_slice(n) for n in (table, _HEAD))
            rows = ours.get_shape()[0]
            parts = [slice(i, min(i + 4096, rows)) for i in range(0, rows, 4096)]
            same = ours.get_shape() == head.get_shape() and all(
                np.array_equal(ours[part], head[part]) for part in parts
            )
        if not same:
            raise ValueError(f"{self._folder}: tie_word_embeddings is true but {_HEAD} differs")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file of a checkpoint folder.

    Raises:
      FileNotFoundError: no such folder, or no such file in it.
      ValueError: it is not a JSON object.
    """
    if not file.parent.is_dir():
        raise FileNotFoundError(f"no checkpoint folder {file.parent}")
    if not file.is_file():
        raise FileNotFoundError(f"{file.parent} holds no {file.name}; give a Hugging Face folder")
    return read_object(file, "copy the folder again")


def _survey(folder: Path) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """Tensor name -> the file that holds it, and -> its shape."""
    files, shapes = {}, {}
    for name in _file_names(folder):
        with ExitStack() as stack:
            handle = _open(folder / name, stack)
            for key in handle.keys():  # noqa: SIM118  (not a dict)
                tensor = handle.get_slice(key)
                if _DERIVED.search(key):
                    continue
                if tensor.get_dtype() not in _FLOATS:
                    raise ValueError(
                        f"{folder / name}: {key} is of type {tensor.get_dtype()}, not one of "
                        f"{', '.join(_FLOATS)}: take the weights before they were quantised"
                    )
                files[key], shapes[key] = name, tuple(tensor.get_shape())
    return files, shapes


def _file_names(folder: Path) -> Iterator[str]:
    if (folder / SINGLE).is_file():
        yield SINGLE
        return
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(
            f"{folder} holds neither {SINGLE} nor {INDEX}; write them with transformers: "
            "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR)"
        )
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(x, str) for x in places.values()):
        raise ValueError(f"{folder / INDEX} has no weight_map of file names; copy the folder again")
    for name in sorted(set(places.values())):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} lacks {name}, which its index names")
        yield name


def _open(file: Path, stack: ExitStack) -> Any:
    try:
        return stack.enter_context(safe_open(file, framework="numpy"))
    except SafetensorError as error:
        raise ValueError(f"{file} is corrupt ({error}); copy it again") from error


def _read(tensor: Any, entry: Entry, box: Box) -> np.ndarray:
    """The part of one tensor that is `box` of its parameter, in our order of axes."""
    size = [stop - start for start, stop in box]
    if len(entry.hf_shape) == 2 and not entry.inputs:  # a table
        (a, b), (c, d) = box
        return tensor[a:b, c:d]
    out = _flat(entry, range(entry.inputs, len(box)), box)
    if not entry.inputs:
        return tensor[out].reshape(size)
    return tensor[out, _flat(entry, range(entry.inputs), box)].T.reshape(size)


def _require_finite(part: np.ndarray, name: str, folder: Path) -> None:
    """Looks at the exponents: all of their bits are set in what is infinite or no number."""
    bits, mask = _EXPONENT[str(part.dtype)]
    flat = part.reshape(-1).view(bits)
    for start in range(0, flat.size, _CHUNK):
        if (flat[start : start + _CHUNK] & mask).max() == mask:
            raise ValueError(
                f"{folder}: {name} holds numbers that are not finite in {part.dtype}; copy the "
                "folder again or take another checkpoint"
            )


def _flat(entry: Entry, axes: range, box: Box) -> slice:
    """Several axes of ours as the one they are in the file; only the first may be cut."""
    inner = 1
    for axis in axes[1:]:
        if box[axis] != (0, entry.shape[axis]):
            raise ValueError(
                f"{entry.hf_name}: axis {axis} of {entry.shape} is not stored as one and cannot "
                "be split over devices; change its logical axes"
            )
        inner *= entry.shape[axis]
    start, stop = box[axes[0]]
    return slice(start * inner, stop * inner)
