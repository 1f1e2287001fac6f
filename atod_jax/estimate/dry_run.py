"""What a run would need: `python -m atod_jax.train --config=… --dry_run [--hardware=h100-8]`.

Nothing is loaded and nothing runs. Models are their config.json (of a folder, or of the table of
published sizes for names such as Qwen/Qwen3-1.7B); the run's own programs are compiled for the
named devices, which need not be here, and XLA says how much memory they take and what they do.
"""

import json
import math
import sys
from collections.abc import Sequence

import jax
import numpy as np

from atod_jax import config
from atod_jax.config import Run
from atod_jax.estimate import phases, programs, targets
from atod_jax.estimate.cost import binds, heaviest
from atod_jax.estimate.hardware import Chip, Hardware, local, parse
from atod_jax.estimate.phases import Compiled
from atod_jax.estimate.remedies import Options, remedies
from atod_jax.estimate.text import amount, digits, duration
from atod_jax.results.tables import padded_table

MOST_TRIES = 8  # of changed options, each compiled


def main(cfg: Run, hardware_name: str, *, details: bool = False) -> None:
    """Prints whether the run fits, then memory and time of its programs; on request everything.

    Raises:
      ValueError: it does not fit; names what to change. Or there is no compiler for this hardware.
    """
    if hardware_name == "local":
        hardware, devices = local(), np.array(jax.devices())
    else:
        hardware = parse(hardware_name)
        targets.prepare(hardware)
        devices = targets.devices(hardware)
    with targets.seen_as(hardware.platform):
        _report(cfg, hardware, devices, details=details)


def _report(cfg: Run, hardware: Hardware, devices: np.ndarray, *, details: bool) -> None:
    found = compiled(cfg, hardware, devices)
    print(verdict(found, hardware))
    print(f"\n{table(found, hardware.chip)}\n")
    if hardware.chip.flops:
        print(time_report(cfg, found, hardware))
    if details:
        print(details_of(cfg, found))
    if _peak(found).needed > hardware.chip.memory:
        raise ValueError(
            f"does not fit {hardware}: {advice(cfg, found, hardware, devices=devices)}"
        )


def compiled(
    cfg: Run, hardware: Hardware, devices: np.ndarray, *, only: Sequence[str] = ()
) -> list[Compiled]:
    """The programs of an iteration, or those of some phases, compiled one after another."""
    planned = [p for p in phases.plan(cfg, devices) if not only or p.name in only]
    found = []
    for number, phase in enumerate(planned, 1):
        print(f"compiling {number} of {len(planned)}: {phase.name}", file=sys.stderr, flush=True)
        found.append(phases.compiled(phase, hardware))
    return found


def _peak(found: Sequence[Compiled]) -> Compiled:
    return max(found, key=lambda c: c.needed)


def verdict(found: Sequence[Compiled], hardware: Hardware) -> str:
    """Whether it fits, in one line."""
    peak, have = _peak(found), hardware.chip.memory
    says = "fits" if peak.needed <= have else "does not fit"
    return (
        f"{says} {hardware}: {amount(peak.needed)} of {amount(have)} per "
        f"{_device(peak)}, in the phase {peak.phase.name!r}"
    )


def _device(found: Compiled) -> str:
    count = math.prod(found.phase.program.mesh.shape.values())
    return f"device of the {found.phase.whose}'s {count}" if found.phase.whose else "device"


def table(found: Sequence[Compiled], chip: Chip) -> str:
    """Memory of a device while each program runs, and the time they take in an iteration."""
    rows = [
        (
            c.phase.name,
            amount(c.phase.beside),
            *map(amount, c.cost.memory),
            amount(c.needed),
            digits(c.seconds) if c.seconds else "-",
            binds(c.cost, chip, times=c.phase.times, steps=c.phase.steps) if c.seconds else "-",
        )
        for c in found
    ]
    columns = ("beside it", "arguments", "temporary", "results", "in all", "seconds", "binds")
    return padded_table(("phase", *columns), rows)


def time_report(cfg: Run, found: Sequence[Compiled], hardware: Hardware) -> str:
    """Of the longest iteration, and what would shorten it."""
    seconds = sum(c.seconds for c in found)
    lines = [
        f"one iteration takes {duration(seconds)}, {cfg.total_steps} take "
        f"{duration(seconds * cfg.total_steps)}, if every episode is {cfg.env.max_turns} turns "
        f"long, prompts have {cfg.sampling.prompt_buckets[-1]} and actions "
        f"{cfg.sampling.max_new_tokens} tokens; without evaluations and environments, and with "
        "every kernel as fast as the card allows"
    ]
    slow = {"student.dtype": cfg.student.dtype}
    if cfg.teacher.path:
        slow["teacher.dtype"] = cfg.teacher.dtype
    flags = _flags({key: "bfloat16" for key, dtype in slow.items() if dtype == "float32"})
    if flags:
        lines.append(f"float32 products are slow on {hardware.chip.name}: {flags} is faster")
    return "\n".join(lines)


def details_of(cfg: Run, found: Sequence[Compiled]) -> str:
    """The config, where every array of the programs lies, and their heaviest kernels."""
    pages = [json.dumps(config.to_plain(cfg), indent=2)]
    for c in found:
        mesh = ", ".join(f"{axis} {size}" for axis, size in c.phase.program.mesh.shape.items())
        pages.append(f"{c.phase.name}, on {mesh}\n\n{programs.placement(c.phase.program)}")
        pages.append(heaviest([(c.cost, c.phase.times, c.phase.steps)], top=10))
    return "\n\n".join(pages)


def advice(cfg: Run, found: Sequence[Compiled], hardware: Hardware, *, devices: np.ndarray) -> str:
    """Options with which it fits, one after another, each tried on the largest phase."""
    have, options = hardware.chip.memory, Options()
    for _ in range(MOST_TRIES):
        worst = _peak(found)
        if worst.needed <= have:
            break
        for change in remedies(cfg, worst.phase.name, devices.size):
            print(f"trying {_flags(change)}", file=sys.stderr, flush=True)
            changed = config.changed(cfg, change)
            then = _changed(changed, found, hardware, devices)
            if _peak(then).needed < worst.needed:
                cfg, found, options = changed, then, options | change
                break
        else:
            break
    peak = _peak(found).needed
    if peak <= have:
        return f"it fits ({amount(peak)}) with {_flags(options)}"
    flags = _flags(options) or "smaller pieces"
    return f"even with {flags} it needs {amount(peak)}; take more devices"


def _changed(
    cfg: Run, found: Sequence[Compiled], hardware: Hardware, devices: np.ndarray
) -> list[Compiled]:
    """The phases with other options. Only the largest is compiled again: what lies on the devices
    is known without that, and the temporaries of the others hardly grow."""
    planned = {phase.name: phase for phase in phases.plan(cfg, devices)}
    worst = _peak(found).phase.name
    return [
        phases.compiled(planned[c.phase.name], hardware)
        if c.phase.name == worst
        else c.moved(planned[c.phase.name])
        for c in found
    ]


def _flags(options: Options) -> str:
    return " ".join(f"--config.{key}={value}" for key, value in options.items())
