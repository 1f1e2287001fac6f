"""Task sets as TFDS data sets: written and read record by record, without TensorFlow."""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from atod_jax import texts


def is_prepared(folder: str | Path) -> bool:
    """Whether TFDS wrote this folder."""
    return (Path(folder) / "dataset_info.json").is_file()


def splits(folder: str | Path) -> list[str]:
    """The splits of a prepared folder; raises like `records`."""
    with _named(folder):
        return sorted(_builder(folder).info.splits)


def records(folder: str | Path, split: str) -> Iterator[dict[str, Any]]:
    """The records of a split with their texts decoded; none where there is no such split.

    Raises:
      ValueError: the folder is damaged.
    """
    with _named(folder):
        builder = _builder(folder)
        found = builder.as_data_source(split) if split in builder.info.splits else ()
        decoded = [{key: _decoded(value) for key, value in record.items()} for record in found]
    yield from decoded


@contextlib.contextmanager
def _named(folder: str | Path) -> Iterator[None]:
    """Whatever TFDS trips over in a damaged folder, as an error that names it."""
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        reason = texts.of_error(error)
        raise ValueError(
            f"{folder} is no readable data set ({reason}); write it again with `prepare`"
        ) from error


def _builder(folder: str | Path) -> Any:
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(str(folder))


def _decoded(value: Any) -> Any:
    """Bytes as text, alone or in a sequence; numbers as they are."""
    if isinstance(value, bytes):
        return value.decode()
    return value if np.isscalar(value) else [item.decode() for item in value]


def write(
    name: str,
    fields: Mapping[str, type],
    *,
    splits: Mapping[str, Iterable[Mapping[str, Any]]],
    out: str | Path,
) -> Path:
    """Builds a data set below `out`; returns its folder.

    Args:
      name: of the data set.
      fields: of every record: str, float, or list for a list of texts; `id` is unique.
      splits: the records of each split.
      out: folder of data sets.
    """
    builder = _writer(name, fields, splits=splits, out=out)
    builder.download_and_prepare()
    return Path(builder.data_path)


def _writer(
    name: str,
    fields: Mapping[str, type],
    *,
    splits: Mapping[str, Iterable[Mapping[str, Any]]],
    out: str | Path,
) -> Any:
    import tensorflow_datasets as tfds  # slow to import, and most runs do not need it

    text = tfds.features.Text()
    kinds: dict[type, Any] = {
        str: text,
        float: tfds.features.Scalar(np.float32),
        list: tfds.features.Sequence(text),
    }
    features = tfds.features.FeaturesDict({field: kinds[kind] for field, kind in fields.items()})

    class Records(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            return self.dataset_info_from_configs(features=features)

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict]]]:
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
            for record in splits[split]:
                yield record["id"], dict(record)

    Records.name = name
    return Records(file_format="array_record", data_dir=str(out))


def main(prepare: Callable[[str, str], Path], *, source: str, default: str | None = None) -> None:
    """A command line with two options: `source`, what is read, and `--out`, where to."""
    parser = argparse.ArgumentParser(description="Writes a TFDS data set; prints its folder.")
    parser.add_argument(f"--{source}", dest="source", default=default, required=default is None)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    with one_line_errors():
        print(prepare(options.source, options.out))


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """For command lines: what is wrong with files and values as one line and exit code 2."""
    try:
        yield
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
