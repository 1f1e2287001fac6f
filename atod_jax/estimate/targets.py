"""Devices that are not here: XLA compiles for an accelerator on any machine.

What it needs of the machine is the compiler alone, which the extra `aot` brings: JAX's CUDA plug-in
for NVIDIA GPUs, libtpu for TPUs. Nothing can run; memory and kernels are those of the real device.
"""

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.experimental import topologies

from atod_jax.estimate.hardware import Hardware

_COMPILER = {"gpu": "jax_plugins.xla_cuda13", "tpu": "libtpu"}
_GPU = """gpu_device_info {{ threads_per_block_limit: 1024 threads_per_warp: 32
 shared_memory_per_block: 49152 shared_memory_per_core: 233472 threads_per_core_limit: 2048
 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
 block_dim_limit_z: 65535 memory_bandwidth: {bandwidth} l2_cache_size: 52428800 clock_rate_ghz: 1.98
 device_memory_size: {memory} shared_memory_per_block_optin: 232448
 registers_per_core_limit: 65536 registers_per_block_limit: 65536
 cuda_compute_capability {{ major: 9 minor: 0 }} }}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}" """
_CARDS = {
    "h100": _GPU.format(bandwidth=3352320000000, memory=84978434048, name="NVIDIA H100 80GB HBM3"),
    "h200": _GPU.format(bandwidth=4800000000000, memory=150754820096, name="NVIDIA H200"),
}
# libtpu would ask the machine it is in, and complain.
_NO_MACHINE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no chip to be locked
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v6e-1",
    "TF_CPP_MIN_LOG_LEVEL": "2",  # a program that does not fit is said by us
}
# Both would try kernels on the card to choose among them.
_NO_TRIALS = " --xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=0"


def require(hardware: Hardware) -> None:
    """Asks for the compiler.

    Raises:
      ValueError: it is not installed; says how to get it.
    """
    if not _installed(_COMPILER[hardware.platform]):
        raise ValueError(
            f"--hardware={hardware.chip.name}: the compiler for it is not installed; get it with "
            '`pip install "atod_jax[aot]"` (in a clone: `pip install ".[aot]"`), no card needed'
        )


def prepare(hardware: Hardware) -> None:
    """Sets what JAX and XLA read when they start: call it before anything asks for devices.

    Raises:
      ValueError: the compiler for this hardware is not installed.
    """
    require(hardware)
    jax.config.update("jax_platforms", "cpu")
    # a program for devices that are not here cannot be read back
    jax.config.update("jax_enable_compilation_cache", False)
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + _NO_TRIALS
    os.environ |= _NO_MACHINE


def _installed(module: str) -> bool:
    package = module.rpartition(".")[0]
    if package and not _installed(package):
        return False
    return importlib.util.find_spec(module) is not None


def devices(hardware: Hardware) -> np.ndarray:
    """The devices of the hardware, in the order of its wiring; `prepare` comes first.

    Raises:
      ValueError: there is no machine with so many.
    """
    count = hardware.count
    if hardware.platform == "gpu":
        hosts, local = nodes(count, hardware.chip.domain)
        found = topologies.get_topology_desc(
            hardware.chip.name,
            "cuda",
            target_config=_CARDS[hardware.chip.name],
            topology=f"1x{hosts}x{local}",
        )
        return np.array(found.devices)
    shape = grid(count, 3 if hardware.chip.name == "v5p" else 2)
    name = f"{hardware.chip.name}:{'x'.join(map(str, shape))}"
    # a host has 2 x 2 chips, or all of fewer
    host = {} if count >= 4 else {"chips_per_host_bounds": (*shape, 1, 1)[:3]}
    return np.array(topologies.get_topology_desc(name, "tpu", **host).devices)


def nodes(count: int, each: int) -> tuple[int, int]:
    """Nodes, and the cards of each.

    Raises:
      ValueError: more than a node has, but no whole number of nodes.
    """
    if count > each and count % each:
        raise ValueError(f"{count} cards: give up to {each}, or whole nodes of {each}")
    return max(1, count // each), min(count, each)


def grid(count: int, axes: int) -> tuple[int, ...]:
    """The sides of the most even box of `count` chips.

    Raises:
      ValueError: `count` is no power of two.
    """
    power = count.bit_length() - 1
    if count != 1 << power:
        raise ValueError(f"--hardware: {count} chips: slices of TPUs come in powers of two")
    sides = [1 << (power + i) // axes for i in range(axes)]
    return tuple(sides if count > 4 else sides[::-1])  # the four of one host lie flat


@contextlib.contextmanager
def seen_as(platform: str) -> Iterator[None]:
    """Code that asks JAX for its platform is told "gpu" or "tpu" while it is traced; JAX's own that
    asks how new the GPU is, that it is new enough: all in `_CARDS` are Hoppers."""
    told: list[tuple[Any, str, Any]] = [(jax, "default_backend", lambda: platform)]
    if platform == "gpu":
        told.append((cudnn, "check_compute_capability", lambda capability: True))
    real = [getattr(module, name) for module, name, _ in told]
    try:
        for module, name, answer in told:
            setattr(module, name, answer)
        yield
    finally:
        for (module, name, _), answer in zip(told, real, strict=True):
            setattr(module, name, answer)
