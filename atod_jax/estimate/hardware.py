"""Published peaks of the accelerators a run can be planned for.

Sources (read 2026-11): cloud.google.com/tpu/docs/v5e, /v5p, /v6e; the H100 and H200 data sheets of
nvidia.com (SXM, dense, i.e. half of the figures with sparsity); 8-GPU nodes with one 400 Gb/s
adapter per GPU as in the DGX H100 reference architecture. Link rates are one direction of all links
of a chip together; vendors also quote twice that, both directions.

Nothing reaches these peaks. What an H100 was seen to reach (660 TFLOP/s for products of 8192^3,
2.75 TB/s for a copy) is taken as the limit, and its shares of the peaks stand for the other chips.
"""

import dataclasses
import os
import re

import jax

GB = 1e9


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator; rates per second, sizes in bytes."""

    name: str
    flops: float  # dense bfloat16
    flops_float32: float  # of float32 products at JAX's default precision
    memory: float
    bandwidth: float  # of the memory
    link: float = 0.0  # to chips of the same domain
    domain: int = 1  # chips that `link` connects: a TPU pod, a GPU node
    outside: float = 0.0  # to chips of other domains
    clock: float = 0.0  # cycles per second in which a TPU's compiler counts

    @property
    def reached(self) -> float:
        """Operations per second of a large bfloat16 product."""
        return 660 / 989 * self.flops

    @property
    def reached_float32(self) -> float:
        """The same of a float32 product."""
        return 660 / 989 * self.flops_float32

    @property
    def streamed(self) -> float:
        """Bytes per second of a large copy."""
        return 2.75 / 3.35 * self.bandwidth

    def reach(self, span: int) -> float:
        """Bytes per second to the others in a group of `span` adjacent chips."""
        return self.link if span <= self.domain else self.outside


LAUNCH = 3e-6  # seconds that the smallest kernel of a GPU takes

# A float32 product is one bfloat16 pass on a TPU, TF32 on a GPU.
CHIPS = {
    chip.name: chip
    for chip in (
        # 1600 Gb/s of links; 6.4 Tb/s of network per pod of 256
        Chip("v5e", 197e12, 197e12, 16 * GB, 819 * GB, 200 * GB, 256, 3.1 * GB, 1.5e9),
        # 4800 Gb/s of links; the largest slice is 6144 chips of a pod of 8960
        Chip("v5p", 459e12, 459e12, 95 * GB, 2765 * GB, 600 * GB, 6144, 6.2 * GB, 1.75e9),
        # 800 GB/s of links, both directions; 25.6 Tb/s of network per pod of 256
        Chip("v6e", 918e12, 918e12, 32 * GB, 1600 * GB, 400 * GB, 256, 12.5 * GB, 1.75e9),
        # NVLink 900 GB/s, both directions
        Chip("h100", 989e12, 495e12, 80 * GB, 3350 * GB, 450 * GB, 8, 50 * GB),
        Chip("h200", 989e12, 495e12, 141 * GB, 4800 * GB, 450 * GB, 8, 50 * GB),
    )
}


@dataclasses.dataclass(frozen=True)
class Hardware:
    """A number of equal chips."""

    chip: Chip
    count: int

    def __str__(self) -> str:
        return f"{self.count} x {self.chip.name}"

    @property
    def platform(self) -> str:
        """As JAX calls it."""
        name = self.chip.name
        return "cpu" if name == "cpu" else "gpu" if name.startswith("h") else "tpu"


def parse(name: str) -> Hardware:
    """`h100` -> one card, `v5e-16` -> 16 chips; `v5p-32` -> 16, that name counts TensorCores.

    Raises:
      ValueError: another form, with the ones there are.
    """
    match = re.fullmatch(r"(\w+?)(?:-([1-9]\d*))?", name)
    if not match or match[1] not in CHIPS:
        forms = ", ".join(CHIPS)
        raise ValueError(
            f"--hardware={name}: choose local, or one of {forms}, alone or with a number: v5e-16"
        )
    chip, count = CHIPS[match[1]], int(match[2] or 1)
    if chip.name != "v5p" or not match[2]:
        return Hardware(chip, count)
    if count % 2:
        raise ValueError(f"--hardware={name}: v5p counts TensorCores, two per chip; give 2 N")
    return Hardware(chip, count // 2)


def local() -> Hardware:
    """The devices here. Of those that are not in the table only the memory is known."""
    devices = jax.devices()
    chip = chip_of(devices[0].device_kind)
    if chip is None:
        stats = devices[0].memory_stats() or {}
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        memory = float(stats.get("bytes_limit", whole / len(devices)))
        chip = Chip(devices[0].platform, 0.0, 0.0, memory, 0.0)
    return Hardware(chip, len(devices))


def chip_of(kind: str) -> Chip | None:
    """The chip that JAX calls so (`device_kind`); None where it is none of them."""
    kinds = {"TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e"}
    cards = [name for name in ("h100", "h200") if name.upper() in kind]
    return CHIPS.get(kinds.get(kind, cards[0] if cards else ""))
