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
from atod_jax import config
from atod_jax.device.sampling import SamplingConfig
from atod_jax.episodes.packing import Form
from atod_jax.estimate import learning, playing, targets, workload
from atod_jax.estimate.cost import Cost, Figures, estimated, heaviest, of_executable
from atod_jax.estimate.hardware import CHIPS, Chip, Hardware, chip_of
from atod_jax.estimate.learning import Update
from atod_jax.estimate.programs import Program, TooLarge
from atod_jax.estimate.text import amount, digits
from atod_jax.models import LanguageModel, build, config_from_hf
from atod_jax.models.block import DTYPES, REMAT
from atod_jax.models.sizes import SIZES, published
from atod_jax.results.files import write_text
from atod_jax.results.tables import padded_table
from atod_jax.run import cli
from atod_jax.run.batch import form_of, turns_together
from atod_jax.sharding import Layout, make_mesh

HARDWARE = ("local", *CHIPS)
TEACHER = "Qwen3-4B"
LENGTHS = Path(__file__).with_name("assets") / "bench" / "lengths.json"
HEAD = {"width": 2048, "vocab": 151_936}
ITERATION = {"sampling.prompt_buckets": (512, 1024), "packing.micro_rows": 64}
REPEATS = 3  # timed runs, after one that warms up


class Setting(NamedTuple):
    """What the programs are made for."""

    model: str  # of the student, see `models.sizes`
    dtype: str  # of the products
    remat: str  # "" = as every entry has it
    layout: Layout  # on one device

    @property
    def student(self) -> LanguageModel:
        return self.build(self.model)

    def learner(self, remat: str) -> LanguageModel:
        """The student where it learns, with what it computes again unless told otherwise."""
        return self.build(self.model, remat=self.remat or remat)

    @property
    def teacher(self) -> LanguageModel:
        return self.build(TEACHER)

    def build(self, name: str, *, remat: str = "none") -> LanguageModel:
        """A published model without weights."""
        config = config_from_hf(published(name), dtype=self.dtype)
        return build(dataclasses.replace(config, remat=remat))


class Part(NamedTuple):
    """How often an entry runs a program, and steps of its open loop."""

    program: Program
    times: float = 1.0
    steps: float = 0.0


# ------------------------------------------------------------------- the table


def _rows(setting: Setting, *, rows: int, prompt: int, response: int) -> workload.Batch:
    """Rows that are all full, 32 of them at a time, one to a line."""
    places = turns_together(setting.student.config)
    form = Form(prompt + response, response, rows=places, micro_lines=32)
    return workload.packed([(prompt, response)] * rows, form, minibatch_rows=rows)


def _update(remat: str, **shape: int) -> Callable[[Setting], list[Part]]:
    return lambda s: [Part(Update(s.learner(remat), s.layout).whole(_rows(s, **shape)))]


def _score(s: Setting) -> list[Part]:
    batch = _rows(s, rows=64, prompt=512, response=128)
    judge = learning.score(s.teacher, batch, s.layout, dtype=s.dtype)
    return [Part(judge, times=batch.micro_batches)]


def _prefill(s: Setting) -> list[Part]:
    return [Part(playing.prefill(s.student, s.layout, lines=128, columns=512))]


def _decode(rows: int) -> Callable[[Setting], list[Part]]:
    """One step, and its share of what a chunk does besides."""
    cfg = _sampling(rows, tokens=128, buckets=(512,))

    def parts(s: Setting) -> list[Part]:
        program = playing.decode(
            s.student, s.layout, cfg, rows=rows, columns=512 + cfg.room, seen=512 + 64
        )
        return [Part(program, times=1 / cfg.chunk, steps=1)]

    return parts


def _head(teacher: bool) -> Callable[[Setting], list[Part]]:
    return lambda s: [Part(learning.head(65_536, s.dtype, s.layout, teacher=teacher, **HEAD))]


def _sampling(slots: int, *, tokens: int, buckets: tuple[int, ...]) -> SamplingConfig:
    return SamplingConfig(
        max_new_tokens=tokens, prompt_buckets=buckets, slots=slots, eos_ids=(1,), pad_id=0
    )


def iteration(s: Setting) -> list[Part]:
    """Playing, both scorings and the updates of the built-in lengths, as a run would do them."""
    lengths = json.loads(LENGTHS.read_text())
    prompts, responses = (np.asarray(lengths[name]) for name in ("prompt", "response"))
    cfg = _sampling(128, tokens=512, buckets=ITERATION["sampling.prompt_buckets"])
    played = workload.play(s.student, cfg, prompts=prompts, responses=responses)
    model, layout = s.student, s.layout
    parts = []
    for (lines, columns, many), times in played.reads.items():
        program = playing.prefill(model, layout, lines=lines, columns=columns, prompts=many)
        parts.append(Part(program, times))
    for (read, rows, columns, entries), times in played.fills.items():
        program = playing.fill(
            model, layout, cfg, read=read, rows=rows, columns=columns, entries=entries
        )
        parts.append(Part(program, times))
    for (rows, columns), times in played.chunks.items():
        program = playing.decode(model, layout, cfg, rows=rows, columns=columns, seen=played.seen)
        parts.append(Part(program, times, played.steps[rows, columns]))
    turns = list(zip(prompts.flat, responses.flat, strict=True))
    run = config.changed(config.resolve(config.base(), model_required=False), ITERATION)
    lines = form_of(run, [workload.episode(turns)], model=s.student.config, mesh=s.layout.mesh)
    batch = workload.packed(turns, lines, minibatch_rows=run.packing.minibatch_rows)
    update = Update(s.learner("none"), s.layout)
    return [
        *parts,
        Part(learning.score(s.student, batch, s.layout), times=batch.micro_batches),
        Part(learning.score(s.teacher, batch, s.layout, dtype=s.dtype), times=batch.micro_batches),
        Part(update.gradient(batch), times=batch.micro_batches),
        Part(update.step(), times=batch.minibatches),
    ]


TABLE: Mapping[str, Callable[[Setting], list[Part]]] = {
    "update_64x640": _update("none", rows=64, prompt=512, response=128),
    "update_32x1536": _update("dots", rows=32, prompt=1024, response=512),
    "score_4b_64x640": _score,
    "prefill_128x512": _prefill,
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
    return unknown(name, where, max(cost.memory.temporary for _, cost in parts)) | {
        "milliseconds": 1e3 * total.seconds,
        "bytes": total.bytes,
        "flops": total.flops,
        "share_of_limit": least / total.seconds if chip else None,
    }


def unknown(name: str, where: str, temporary: int) -> dict[str, Any]:
    """A record of an entry that does not fit its device."""
    nothing = dict.fromkeys(("milliseconds", "bytes", "flops", "share_of_limit"))
    return {"name": name, "hardware": where, "temporary_bytes": temporary} | nothing


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
    with targets.seen_as(at.platform) if at else contextlib.nullcontext():
        for name in entries:
            try:
                parts = _costs(name, setting, at=at, dump=given.dump_hlo)
            except TooLarge as error:
                records.append(unknown(name, given.hardware, error.temporary))
                print(f"{name} on {given.hardware}: {error}\n", flush=True)
                continue
            records.append(record(name, given.hardware, parts, chip=chip))
            print(page(records[-1], parts, top=given.top), flush=True)
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
    lines = [
        f"{found['name']} on {found['hardware']}: {digits(found['milliseconds'])} ms{limit}; "
        f"temporaries {amount(found['temporary_bytes'])}, moved {amount(found['bytes'])}, "
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
    add("--remat", default="none", choices=REMAT, help="what the backward pass computes again")
    add("--json", type=Path, metavar="FILE", help="keeps the table")
    add("--dump_hlo", type=Path, metavar="DIR", help="keeps the compiled programs as NAME.hlo")
    add("--top", type=int, default=10, help="kernels shown of each program")
    add("--version", action="version", version=f"atod_jax {atod_jax.__version__}")
    with cli.short_errors():
        given = parser.parse_args(None if arguments is None else list(arguments))
        entries = given.only.split(",")
        if unknown := sorted(set(entries) - set(TABLE)):
            raise ValueError(f"--only: no entry {', '.join(unknown)}; take {', '.join(TABLE)}")
        if given.json and (given.json.is_dir() or not given.json.name):
            raise ValueError(f"--json={given.json}: name a file, not a folder")
        for folder in (given.json and given.json.parent, given.dump_hlo):
            if folder:  # what cannot be written is told before the work
                folder.mkdir(parents=True, exist_ok=True)
        records = bench(entries, given)
        if given.json:
            write_text(given.json, json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
