"""Test-wide settings: eight fake CPU devices, strict ranks, shapes checked at run time."""

import os
import sys
import tarfile

if "gpu" not in sys.argv:  # `pytest -m gpu tests/gpu` runs on what is there, as programs do
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "")
        + " --xla_force_host_platform_device_count=8"
        # a fake device that a busy machine keeps waiting must not abort the whole test process
        + " --xla_cpu_collective_call_terminate_timeout_seconds=600"
        # most of the time goes into compiling programs that run for milliseconds
        + " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    )

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_rank_promotion", "raise")
# Two programs in flight share the threads of the fake devices and can wait for each other forever.
jax.config.update("jax_cpu_enable_async_dispatch", False)
jax.config.update(
    "jax_compilation_cache_dir",
    os.environ.get("JAX_COMPILATION_CACHE_DIR", "/tmp/atod_jax_test_cache"),
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

install_import_hook(["atod_jax.core", "atod_jax.algorithms"], "beartype.beartype")

REPO = Path(__file__).resolve().parents[1]
MAPPINGS = Path("/proc/self/maps")  # of Linux
MANY_MAPPINGS = 20_000  # a third of what the kernel grants a process


@pytest.fixture(scope="module", autouse=True)
def _forget_programs() -> Iterator[None]:
    """A compiled program takes some memory mappings; a process that runs out of them is aborted."""
    yield
    if MAPPINGS.exists() and len(MAPPINGS.read_bytes().splitlines()) > MANY_MAPPINGS:
        jax.clear_caches()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The recorded real data (ATOD_DATA_DIR, default ../shared/data); skips where absent."""
    path = Path(os.environ.get("ATOD_DATA_DIR", REPO.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no recorded data at {path}; set ATOD_DATA_DIR")
    return path


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The folder of golden numbers (ATOD_GOLDEN_DIR, default tests/golden)."""
    return Path(os.environ.get("ATOD_GOLDEN_DIR", REPO / "tests" / "golden"))


@pytest.fixture(scope="session")
def real_tokenizers(tmp_path_factory):
    """A folder of published tokenizers (ATOD_TOKENIZERS, an archive); skips where absent."""
    default = REPO.parent / "shared" / "models" / "tokenizers.tar.xz"
    path = Path(os.environ.get("ATOD_TOKENIZERS", default))
    if not path.is_file():
        pytest.skip(f"no published tokenizers: {path} is not there")
    folder = tmp_path_factory.mktemp("tokenizers")
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
    return folder
