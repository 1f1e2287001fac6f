"""What only an NVIDIA card can tell: `pytest -m gpu tests/gpu`, a few minutes on one."""

import jax
import pytest


@pytest.fixture(autouse=True)
def _card():
    if jax.default_backend() != "gpu":
        pytest.skip("needs an NVIDIA GPU, and JAX with its CUDA plug-in")
