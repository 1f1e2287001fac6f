"""Reads task sets that TFDS prepared, record by record, without TensorFlow."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


def is_prepared(folder: str | Path) -> bool:
    """Whether TFDS wrote this folder."""
    return (Path(folder) / "dataset_info.json").is_file()


def splits(folder: str | Path) -> list[str]:
    """The splits of a prepared folder."""
    return sorted(_builder(folder).info.splits)


def records(folder: str | Path, split: str) -> Iterator[dict[str, Any]]:
    """The records of a split with their texts decoded; none where there is no such split."""
    builder = _builder(folder)
    if split not in builder.info.splits:
        return
    for record in builder.as_data_source(split):
        yield {key: _decoded(value) for key, value in record.items()}


def _builder(folder: str | Path) -> Any:
    import tensorflow_datasets as tfds  # slow to import, and most runs do not need it

    return tfds.builder_from_directory(str(folder))


def _decoded(value: Any) -> Any:
    """Bytes as text, alone or in a sequence; numbers as they are."""
    if isinstance(value, bytes):
        return value.decode()
    return value if np.isscalar(value) else [item.decode() for item in value]
