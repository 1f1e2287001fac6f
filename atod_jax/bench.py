"""How fast the large programs are, here or on an accelerator that is not here.

    python -m atod_jax.bench --only=head_65536
    python -m atod_jax.bench --hardware=h100 --json=h100.json

--hardware=local runs them on the first device of this machine. Any other compiles them for that
device, which needs the extra `aot` and no card: memory is what the device would report, the time is
a roofline over the kernels (GPU) or the compiler's own count of cycles (TPU). --model is the
student, and the teacher is Qwen3-4B. `iteration` is put together from programs and from the lengths
of 3,200 real prompts and responses, 25 turns of 128 episodes.
"""

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from atod_jax.estimate import targets, workload
from atod_jax.estimate.cost import Cost, Figures, estimated, heaviest, of_executable
from atod_jax.estimate.entries import TABLE, Part, Setting
from atod_jax.estimate.hardware import CHIPS, Chip, Hardware, chip_of
from atod_jax.estimate.programs import Program, TooLarge
from atod_jax.estimate.text import amount, digits
from atod_jax.models.block import DTYPES, REMAT
from atod_jax.models.sizes import SIZES
from atod_jax.results.files import write_text
from atod_jax.results.tables import padded_table
from atod_jax.run import cli
from atod_jax.sharding import Layout, make_mesh

HARDWARE = ("local", *CHIPS)
REPEATS = 3  # timed runs, after one that warms up


def measured(executable: Any, program: Program) -> Cost:
    """Of a program compiled for the device here: the median of a few runs."""
    arguments, seconds = program.arguments(), []
    for _ in range(1 + REPEATS):
        started = time.perf_counter()
        result = jax.block_until_ready(executable(*arguments))
        seconds.append(time.perf_counter() - started)
        if program.replaced is not None:
            arguments[program.replaced] = result[0] if isinstance(result, tuple) else result
    found, median = of_executable(executable, lambda kernel: 0.0), statistics.median(seconds[1:])
    if not program.steps:
        return found._replace(whole=found.whole._replace(seconds=median))
    return found._replace(step=found.step._replace(seconds=median / program.steps))


def record(
    name: str, where: str, parts: Sequence[tuple[Part, Cost]], *, chip: Chip | None
) -> dict[str, Any]:
    """An entry as --json keeps it; the share is None on a device whose limit is not known."""
    total, least = Figures(), 0.0
    for part, cost in parts:
        total = total.plus(1, _total(part, cost))
        if chip:
            often = part.steps if part.program.steps else part.times
            least += often * part.program.work.seconds(chip)
    needed = max(part.beside + cost.memory.needed for part, cost in parts)
    return unknown(name, where, max(cost.memory.temporary for _, cost in parts)) | {
        "fits": needed <= chip.memory if chip else None,
        "memory_bytes": needed,
        "milliseconds": 1e3 * total.seconds,
        "bytes": total.bytes,
        "flops": total.flops,
        "share_of_limit": least / total.seconds if chip else None,
    }


def unknown(name: str, where: str, temporary: int) -> dict[str, Any]:
    """A record of an entry that the compiler gives up because it does not fit its device."""
    nothing = dict.fromkeys(("memory_bytes", "milliseconds", "bytes", "flops", "share_of_limit"))
    return {"name": name, "hardware": where, "fits": False, "temporary_bytes": temporary} | nothing


# ------------------------------------------------------------------- the program


def bench(entries: Iterable[str], given: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures or compiles the entries, prints each as soon as it is known, returns the records."""
    at = None if given.hardware == "local" else Hardware(CHIPS[given.hardware], 1)
    if at:
        targets.prepare(at)
    devices = targets.devices(at) if at else np.array(jax.local_devices()[:1])
    chip = at.chip if at else chip_of(devices[0].device_kind)
    setting = Setting(
        given.model,
        given.dtype,
        given.remat,
        Layout(make_mesh({}, devices)),
        vocab=given.vocab,
        turns=given.turns,
        episodes=given.episodes,
    )
    records = []
    with targets.seen_as(at.platform) if at else contextlib.nullcontext():
        for name in entries:
            try:
                parts = _costs(name, setting, at=at, dump=given.dump_hlo)
            except TooLarge as error:
                records.append(unknown(name, given.hardware, error.temporary))
                print(f"{name} on {given.hardware}: {error}\n", flush=True)
                continue
            records.append(record(name, given.hardware, parts, chip=chip))
            print(page(records[-1], parts, top=given.top if at else 0), flush=True)
    return records


def _costs(
    name: str, setting: Setting, *, at: Hardware | None, dump: Path | None
) -> list[tuple[Part, Cost]]:
    """The programs of an entry, compiled one by one."""
    table, found = TABLE[name](setting), []
    for number, part in enumerate(table, 1):
        executable = part.program.compile()
        cost = estimated(executable, at.chip) if at else measured(executable, part.program)
        found.append((part, cost))
        if dump:
            file = f"{name}_{number}_{part.program.name}" if len(table) > 1 else name
            write_text(dump / f"{file}.hlo", executable.as_text())
    return found


def page(found: dict[str, Any], parts: Sequence[tuple[Part, Cost]], *, top: int) -> str:
    """A record for the terminal, its programs, and the kernels that take longest, by the line that
    asked for them."""
    share = found["share_of_limit"]
    limit = "" if share is None else f", {100 * share:.0f} % of the limit"
    if found["fits"] is False:
        limit += " if it were larger: this does not fit"
    lines = [
        f"{found['name']} on {found['hardware']}: {digits(found['milliseconds'])} ms{limit}; "
        f"memory {amount(found['memory_bytes'])}, of which temporaries "
        f"{amount(found['temporary_bytes'])}; moved {amount(found['bytes'])}, "
        f"{amount(found['flops'], 'FLOP')}"
    ]
    if len(parts) > 1:
        rows = [
            (
                part.program.name,
                f"{part.times:g}",
                f"{part.steps:g}",
                digits(1e3 * _total(part, cost).seconds),
                amount(cost.memory.temporary),
            )
            for part, cost in parts
        ]
        lines.append(padded_table(("program", "times", "steps", "ms", "temporaries"), rows))
    if top:
        runs = [(cost, part.times, part.steps) for part, cost in parts]
        lines.append(f"{heaviest(runs, top=top)}\n")
    return "\n".join(lines)


def _total(part: Part, cost: Cost) -> Figures:
    return Figures().plus(part.times, cost.whole).plus(part.steps, cost.step)


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"{value} is too small, give at least {least}")
        return value

    return number


def main(arguments: Iterable[str] | None = None) -> None:
    """Command line."""
    parser = cli.Parser("bench", __doc__)
    add = parser.add_argument
    add("--hardware", default="local", choices=HARDWARE, help="where; local runs, others compile")
    add("--only", default=",".join(TABLE), metavar="NAMES", help="of: " + ", ".join(TABLE))
    add(
        "--model",
        default="Qwen3-0.6B",
        choices=SIZES,
        metavar="NAME",
        help="the student, of: " + ", ".join(SIZES),
    )
    add("--dtype", default="bfloat16", choices=DTYPES, help="of the products")
    add("--remat", default="none", choices=REMAT, help="what the backward pass computes again")
    number = {"default": 0, "metavar": "N"}
    add("--vocab", type=_at_least(workload.IDS), help="rows of every head", **number)
    add("--turns", type=_at_least(1), help="of an episode of `iteration`; 25 recorded", **number)
    add("--episodes", type=_at_least(1), help="of `iteration`; 128 recorded", **number)
    add("--json", type=Path, metavar="FILE", help="keeps the table")
    add("--dump_hlo", type=Path, metavar="DIR", help="keeps the compiled programs as NAME.hlo")
    add("--top", type=_at_least(0), default=10, help="kernels shown of each compiled program")
    with cli.short_errors():
        given = parser.read(arguments)
        entries = dict.fromkeys(name.strip() for name in given.only.split(","))
        if unknown := sorted(set(entries) - set(TABLE)):
            raise ValueError(
                f"--only: no entry {', '.join(map(repr, unknown))}; take {', '.join(TABLE)}"
            )
        if given.json and (given.json.is_dir() or not given.json.name):
            raise ValueError(f"--json={given.json}: name a file, not a folder")
        for flag, folder in (
            ("json", given.json and given.json.parent),
            ("dump_hlo", given.dump_hlo),
        ):
            if folder:  # what cannot be written is told before the work
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise ValueError(f"--{flag}: no folder {folder} ({error.strerror})") from None
        records = bench(entries, given)
        if given.json:
            write_text(given.json, json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
