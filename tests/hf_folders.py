"""Hugging Face folders as NumPy arrays: what tests compare with."""

from pathlib import Path
from typing import Any

from flax.traverse_util import unflatten_dict

from atod_jax.models.block import ModelConfig
from atod_jax.models.checkpoint_io import read_config
from atod_jax.models.weights import Weights


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
