"""What the released runs need on other machines: `python -m configs.scaling` writes the page.

    python -m configs.scaling [--out=atod_jax/SCALING.md]

Arithmetic only (`python -m atod_jax.train --dry_run` prints the same for one config); seconds.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import atod_jax
from atod_jax import config
from atod_jax.estimate import dry_run, memory, roofline
from atod_jax.estimate.hardware import Hardware, parse
from atod_jax.estimate.plan import Plan
from atod_jax.estimate.suggestions import suggest
from atod_jax.estimate.text import amount, digits
from atod_jax.results.tables import padded_table

from .presets import MODELS
from .sweeps import TASKS

PAGE = Path(atod_jax.__file__).parent / "SCALING.md"
MACHINES = ("v5e-16", "v6e-8", "h100-8")
CHIPS = (16, 32, 64, 128, 256, 512, 1024)
CHIP = "v5p"
CORES = 2  # per chip; names of v5p slices count them

INTRODUCTION = """# What runs need on which hardware

Made by `python -m configs.scaling`; a test makes it again and compares. None of it is measured. The
same for one config, with every part of memory: `python -m atod_jax.train --config=… --dry_run
--hardware=v5e-16`.

Assumptions:

- Published peaks of the chips (`atod_jax/estimate/hardware.py`, with sources). Programs reach
  {COMPUTING} of the operations, {MEMORY} of the memory bandwidth and {LINKS} of the link
  bandwidth; a small message takes {LATENCY} microseconds. A phase lasts as long as the slowest of
  computing, memory and links: what is hidden behind another is hidden completely. Phases follow
  each other. Environments, evaluations, the host and compilation take no time.
- Every iteration is the largest there can be: all episodes run to the turn limit, prompts fill the
  longest bucket, actions the token limit. Real iterations are shorter.
- bfloat16 products (`student.dtype`, `teacher.dtype`), float32 weights and moments of the student,
  bfloat16 weights of the teacher, all of them split over `mesh.fsdp`.
- All attention scores are computed and pass through memory, masked ones too. No prompt is read from
  a cache of earlier turns.
- A mixture's tokens are spread evenly over its experts; a device routes its own rows only,
  and a grouped product costs what its rows cost. XLA's CPU backend multiplies every row with every
  expert of the device instead: dry runs for a CPU count its memory, not its time. A GPU without a
  grouped kernel does the same, which is not counted.
- Estimates of memory are between one and two times what XLA reports for small models, dense ones
  and mixtures, compiled for a CPU (tested).
- Not counted: XLA on a CPU keeps a bfloat16 copy of the float32 weights while it computes in
  bfloat16 (2 bytes per parameter, split like the weights). Small dense models in bfloat16 need up
  to 1.3 times the estimate there. Where a figure below is close to the memory of a chip, halve the
  micro-batch.
"""


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=PAGE)
    parser.parse_args().out.write_text(page())


def page() -> str:
    """The whole page."""
    parts = (
        INTRODUCTION.strip().format(
            COMPUTING=f"{roofline.COMPUTING:.0%}",
            MEMORY=f"{roofline.MEMORY:.0%}",
            LINKS=f"{roofline.LINKS:.0%}",
            LATENCY=round(1e6 * roofline.LATENCY),
        ),
        "## The nine released runs",
        released_runs(),
        "## The 4B student and its 30B-A3B teacher on more chips: the same batch",
        f"ALFWorld, {CHIP}, 128 episodes and minibatches of 256 rows as released. Rows are split "
        "until every chip has one episode, from there on the width of the models and the experts.",
        *scaled(same_batch),
        "## The same with a batch that grows",
        f"ALFWorld, {CHIP}, 8 episodes, 16 rows of a minibatch and 4 of a micro-batch per chip; "
        "weights are split over 16 chips and copied beyond.",
        *scaled(growing_batch, shown=(CHIPS[0], CHIPS[-1])),
    )
    return "\n\n".join(parts) + "\n"


# ------------------------------------------------------------------- the released runs


def released_runs() -> str:
    """Every task and student on every machine, changed as little as it takes to fit."""
    rows = [
        (f"{task} {student}", machine, *_on(released(task, student, parse(machine)), machine))
        for task in TASKS
        for student in MODELS
        for machine in MACHINES
    ]
    changes = "changes that make it fit"
    heads = ("run", "on", "as released", changes, "then", "steps/hour", "slowest phase")
    return padded_table(heads, rows)


def released(task: str, student: str, hardware: Hardware) -> Plan:
    """A released run with its weights split over all chips."""
    c = config.load(f"{task}:student={student}")
    c.student.dtype = c.teacher.dtype = "bfloat16"
    c.mesh.data, c.mesh.fsdp = 1, -1
    return dry_run.plan_of(config.resolve(c), hardware)


def _on(plan: Plan, machine: str) -> tuple[str, ...]:
    hardware = parse(machine)
    options, changed = suggest(plan, hardware.chip.memory)
    before, (phase, after) = memory.peak(plan)[1], memory.peak(changed)
    words = ", ".join(f"{key}={value}" for key, value in options.items()) or "-"
    if after > hardware.chip.memory:
        return amount(before), "none do", f"{amount(after)} ({phase})", "-", "-"
    phases = roofline.phases(changed, hardware)
    slowest = max(phases, key=lambda p: p.seconds)
    rate = digits(3600 / sum(p.seconds for p in phases))
    return amount(before), words, amount(after), rate, f"{slowest.name} ({slowest.binds})"


# ------------------------------------------------------------------- more chips


def same_batch(chips: int) -> Plan:
    """The released batch; rows split first, then tensor, then experts."""
    rows = min(chips, 128)
    tensor = min(chips // rows, 4)  # the teacher has 4 key heads
    shape = {"data": 1, "fsdp": rows, "tensor": tensor, "expert": chips // rows // tensor}
    return _large(chips, 16, shape, micro_rows=max(rows, 64))


def growing_batch(chips: int) -> Plan:
    """Eight episodes per chip."""
    shape = {"data": chips // 16, "fsdp": 16, "tensor": 1, "expert": 1}
    return _large(chips, chips, shape, micro_rows=4 * chips, minibatch_rows=16 * chips)


def _large(chips: int, tasks: int, shape: dict[str, int], **packing: int) -> Plan:
    c = config.load("alfworld:student=4b")
    c.student.dtype = c.teacher.dtype = "bfloat16"
    c.mesh.update(shape)
    c.packing.update(packing)
    c.rollout.tasks, c.eval.slots = tasks, 8 * tasks
    return dry_run.plan_of(config.resolve(c), _machine(chips))


def _machine(chips: int) -> Hardware:
    return parse(f"{CHIP}-{CORES * chips}")


def scaled(make: Callable[[int], Plan], shown: Sequence[int] = CHIPS) -> tuple[str, str]:
    """A table of iterations and one of their phases, over the numbers of chips."""
    plans = {chips: make(chips) for chips in CHIPS}
    phases = {chips: roofline.phases(plan, _machine(chips)) for chips, plan in plans.items()}
    rate = {n: plans[n].episodes / sum(p.seconds for p in phases[n]) / n for n in CHIPS}
    summary = [
        (
            chips,
            ", ".join(f"{axis} {size}" for axis, size in plan.student.mesh if size > 1),
            plan.episodes,
            amount(memory.peak(plan)[1]),
            digits(sum(p.seconds for p in phases[chips])),
            digits(3600 / sum(p.seconds for p in phases[chips])),
            f"{rate[chips] / rate[CHIPS[0]]:.0%}",
        )
        for chips, plan in plans.items()
    ]
    detail = [
        (
            chips,
            p.name,
            amount(p.work.flops, "FLOP"),
            amount(p.work.memory),
            amount(sum(p.work.links.values())),
            digits(p.seconds),
            p.binds,
        )
        for chips in shown
        for p in phases[chips]
    ]
    heads = ("chips", "mesh", "episodes", "peak memory", "seconds", "steps/hour", "efficiency")
    parts = ("chips", "phase", "operations", "memory traffic", "links", "seconds", "binds")
    return padded_table(heads, summary), "Per chip and phase of an iteration:\n\n" + padded_table(
        parts, detail
    )


if __name__ == "__main__":
    main()
