"""Work on hardware as time: a phase lasts as long as the slowest of computing, memory and links."""

import dataclasses
import math
from collections.abc import Mapping

from atod_jax.estimate.hardware import Hardware
from atod_jax.estimate.plan import Placed, Plan
from atod_jax.estimate.work import Work, iteration, runs_on
from atod_jax.models import ModelConfig

# Shares of the published peaks that well-shaped programs reach; assumptions, not measurements.
COMPUTING, MEMORY, LINKS = 0.5, 0.8, 0.8
LATENCY = 1e-5  # seconds per small message among all devices, likewise assumed


@dataclasses.dataclass(frozen=True)
class Phase:
    """Seconds of one phase, if each of the three were alone."""

    name: str
    work: Work
    computing: float
    memory: float
    links: float

    @property
    def seconds(self) -> float:
        return max(self.computing, self.memory, self.links)

    @property
    def binds(self) -> str:
        """Which of the three takes longest."""
        times = {"computing": self.computing, "memory": self.memory, "links": self.links}
        return max(times, key=times.__getitem__)


def phases(plan: Plan, hardware: Hardware) -> list[Phase]:
    """One iteration, phase by phase; they follow each other, also those on other devices."""
    found = []
    for name, work in iteration(plan).items():
        placed = runs_on(plan, name)
        found.append(
            Phase(
                name=name,
                work=work,
                computing=work.flops / (COMPUTING * _peak(hardware, placed.model)),
                memory=work.memory / (MEMORY * hardware.chip.bandwidth),
                links=_links(placed, hardware, work.links) + LATENCY * work.messages,
            )
        )
    return found


def _peak(hardware: Hardware, config: ModelConfig) -> float:
    chip = hardware.chip
    return chip.flops_float32 if config.dtype == "float32" else chip.flops


def _links(placed: Placed, hardware: Hardware, links: Mapping[str, float]) -> float:
    """All axes one after the other; one reaches as far as it and those inside it are long."""
    axes = [name for name, _ in placed.mesh]
    spans = {axis: math.prod(placed.axis(a) for a in axes[axes.index(axis) :]) for axis in axes}
    return sum(size / (LINKS * hardware.reach(spans[axis])) for axis, size in links.items())
