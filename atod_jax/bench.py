"""How fast the large programs are, here or on an accelerator that is not here.

    python -m atod_jax.bench --only=head_65536
    python -m atod_jax.bench --hardware=h100 --json=h100.json

--hardware=local runs them on the first device of this machine. Any other compiles them for that
device, which needs the extra `aot` and no card: memory is what the device would report, the time is
a roofline over the kernels (GPU) or the compiler's own count of cycles (TPU). --model is the
student, and the teacher is Qwen3-4B. `iteration` is put together from programs and from the lengths
of 3,200 real prompts and responses.
"""

import argparse
import contextlib
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import atod_jax
from atod_jax.estimate import programs, targets
from atod_jax.estimate.cost import Cost, Figures, estimated, heaviest, of_executable
from atod_jax.estimate.hardware import CHIPS, Chip, Hardware, chip_of
from atod_jax.estimate.programs import Program, Shape
from atod_jax.estimate.text import amount, digits
from atod_jax.models import build, config_from_hf
from atod_jax.models.sizes import SIZES, published
from atod_jax.models.transformer import DTYPES, REMAT
from atod_jax.results.files import write_text
from atod_jax.run import cli
from atod_jax.sharding import Layout, make_mesh

HARDWARE = ("local", *CHIPS)
TEACHER = "Qwen3-4B"
LENGTHS = Path(__file__).with_name("assets") / "bench" / "lengths.json"
HEAD = {"width": 2048, "vocab": 151_936}
REPEATS = 3  # timed runs, after one that warms up


class Setting(NamedTuple):
    """What the programs are made for."""

    model: str  # of the student, see `models.sizes`
    dtype: str  # of the products
    remat: str
    layout: Layout  # on one device


class Part(NamedTuple):
    """How often an entry runs a program, and steps of its open loop."""

    program: Program
    times: int = 1
    steps: int = 0


# ------------------------------------------------------------------- the table


def _model(setting: Setting, name: str = "") -> Any:
    config = config_from_hf(published(name or setting.model), dtype=setting.dtype)
    return build(dataclasses.replace(config, remat=setting.remat))


def _update(rows: int, prompt: int, response: int) -> Callable[[Setting], list[Part]]:
    shape = Shape(rows, prompt, response, micro_rows=32)
    return lambda s: [Part(programs.update(_model(s), shape, s.layout))]


def _decode(rows: int) -> Callable[[Setting], list[Part]]:
    shape = Shape(rows, 512, 128)
    return lambda s: [Part(programs.play(_model(s), shape, s.layout), times=0, steps=1)]


def _head(teacher: bool) -> Callable[[Setting], list[Part]]:
    return lambda s: [Part(programs.head(65_536, s.dtype, s.layout, teacher=teacher, **HEAD))]


def _teacher_score(s: Setting, shape: Shape) -> Program:
    return programs.score(_model(s, TEACHER), shape, s.layout, dtype=s.dtype)


def iteration(setting: Setting) -> list[Part]:
    """Playing, both scorings and the updates of the built-in lengths.

    All episodes of a turn are sampled together until the last of them has ended; a row has as many
    columns as the longest needs.
    """
    lengths = json.loads(LENGTHS.read_text())
    turns, episodes = np.shape(lengths["response"])
    longest = np.max(lengths["response"], axis=1)
    student, layout = _model(setting), setting.layout
    rows = Shape(256, 1024, 512, micro_rows=32)
    count = -(-turns * episodes // rows.rows)
    return [
        Part(
            programs.play(student, Shape(episodes, 1024, 512), layout),
            times=turns,
            steps=int(np.sum(longest - 1)),
        ),
        Part(programs.score(student, rows, layout), times=count),
        Part(_teacher_score(setting, rows), times=count),
        Part(programs.update(student, rows, layout), times=count),
    ]


TABLE: Mapping[str, Callable[[Setting], list[Part]]] = {
    "update_64x640": _update(64, 512, 128),
    "update_32x1536": _update(32, 1024, 512),
    "score_4b_64x640": lambda s: [Part(_teacher_score(s, Shape(64, 512, 128, micro_rows=32)))],
    "prefill_128x512": lambda s: [Part(programs.prefill(_model(s), Shape(128, 512, 1), s.layout))],
    "decode_128": _decode(128),
    "decode_32": _decode(32),
    "head_65536": _head(teacher=False),
    "head_65536_teacher": _head(teacher=True),
    "iteration": iteration,
}


# ------------------------------------------------------------------- what it costs


def measured(executable: Any, program: Program) -> Cost:
    """Of a program compiled for the device here: the median of a few runs."""
    arguments, seconds = program.arguments(), []
    for _ in range(1 + REPEATS):
        started = time.perf_counter()
        result = jax.block_until_ready(executable(*arguments))
        seconds.append(time.perf_counter() - started)
        if program.donated:
            arguments = (result[0], *arguments[1:])
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
        total = total.plus(part.times, cost.whole).plus(part.steps, cost.step)
        if chip:
            flops, moved = part.program.work
            bound = max(flops / chip.reached, moved / chip.streamed)
            least += (part.steps if part.program.steps else part.times) * bound
    return {
        "name": name,
        "hardware": where,
        "milliseconds": 1e3 * total.seconds,
        "temporary_bytes": max(cost.memory.temporary for _, cost in parts),
        "bytes": total.bytes,
        "flops": total.flops,
        "share_of_limit": least / total.seconds if chip else None,
    }


# ------------------------------------------------------------------- the program


def bench(entries: Sequence[str], given: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures or compiles the entries, prints each as soon as it is known, returns the records."""
    at = None if given.hardware == "local" else Hardware(CHIPS[given.hardware], 1)
    if at:
        targets.prepare(at)
    devices = targets.devices(at) if at else np.array(jax.local_devices()[:1])
    chip = at.chip if at else chip_of(devices[0].device_kind)
    setting = Setting(given.model, given.dtype, given.remat, Layout(make_mesh({}, devices)))
    records = []
    with jax.set_mesh(setting.layout.mesh):
        for name in entries:
            parts = []
            for part in TABLE[name](setting):
                with targets.seen_as(at.platform) if at else contextlib.nullcontext():
                    executable = part.program.lower().compile()
                found = estimated(executable, at.chip) if at else measured(executable, part.program)
                parts.append((part, found))
                if given.dump_hlo:
                    file = name if part.program.name in name else f"{name}_{part.program.name}"
                    write_text(given.dump_hlo / f"{file}.hlo", executable.as_text())
            records.append(record(name, given.hardware, parts, chip=chip))
            print(page(records[-1], parts, top=given.top), flush=True)
    return records


def page(found: dict[str, Any], parts: Sequence[tuple[Part, Cost]], *, top: int) -> str:
    """A record for the terminal, and the kernels that take longest, by the line that asked."""
    share = found["share_of_limit"]
    limit = "" if share is None else f", {100 * share:.0f} % of the limit"
    lines = [
        f"{found['name']} on {found['hardware']}: {digits(found['milliseconds'])} ms{limit}; "
        f"temporaries {amount(found['temporary_bytes'])}, moved {amount(found['bytes'])}, "
        f"{amount(found['flops'], 'FLOP')}"
    ]
    runs = [(cost, part.times, part.steps) for part, cost in parts]
    return "\n".join([*lines, heaviest(runs, top=top) + "\n"] if top else lines)


def main(arguments: Iterable[str] | None = None) -> None:
    """Command line."""
    parser = cli.Parser(
        prog="python -m atod_jax.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--hardware", default="local", choices=HARDWARE, help="where; local runs, others compile")
    add("--only", default=",".join(TABLE), metavar="NAMES", help="of: " + ", ".join(TABLE))
    add("--model", default="Qwen3-0.6B", choices=SIZES, metavar="NAME", help="the student")
    add("--dtype", default="bfloat16", choices=DTYPES, help="of the products")
    add("--remat", default="full", choices=REMAT, help="what the backward pass computes again")
    add("--json", type=Path, metavar="FILE", help="keeps the table")
    add("--dump_hlo", type=Path, metavar="DIR", help="keeps the compiled programs as NAME.hlo")
    add("--top", type=int, default=10, help="kernels shown of each program")
    add("--version", action="version", version=f"atod_jax {atod_jax.__version__}")
    with cli.short_errors():
        given = parser.parse_args(None if arguments is None else list(arguments))
        entries = given.only.split(",")
        if unknown := sorted(set(entries) - set(TABLE)):
            raise ValueError(f"--only: no entry {', '.join(unknown)}; take {', '.join(TABLE)}")
        records = bench(entries, given)
        if given.json:
            write_text(given.json, json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
