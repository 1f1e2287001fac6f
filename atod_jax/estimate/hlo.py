"""What a compiled program does, kernel by kernel, read from the text XLA prints of it.

An operation reads its operands, or of an operand only the slices it takes of it, and writes its
result, or only what it updates in place. Operations of a loop count as often as the loop runs;
where XLA does not know how often that is (a loop that may stop early), the caller says it.
"""

import collections
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from atod_jax.estimate.hardware import LAUNCH, Chip
from atod_jax.estimate.sources import Sources

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "c64": 8, "c128": 16}
_ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+(?:e\d\w*)?|c64|c128)\[([\d,]*)\]")
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_OP = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_NOTHING = {
    "parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all", "partition-id",
    "replica-id", "ConcatBitcast", "AllocateBuffer",
}  # fmt: skip
_SLICES = ("dynamic-slice", "slice", "gather")
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # in place; operand that says with what
_SAME = ("bitcast", "convert", "copy", "reshape")  # in a fusion: a reader of a slice of it
_SHARED = {  # bytes sent per byte of the result or operand, many devices taking part
    "all-reduce": 2.0, "all-gather": 1.0, "reduce-scatter": 1.0, "all-to-all": 1.0,
    "ragged-all-to-all": 1.0, "collective-permute": 1.0,
}  # fmt: skip


class Kernel(NamedTuple):
    """One operation of the device; the figures are those of one time."""

    kind: str  # fusion, copy, ...; the target of a custom call
    shape: str  # of the result
    source: str  # the line of this package that asked for it, or what JAX calls it
    times: int  # how often it runs
    bytes: float  # of the device's memory, read and written
    flops: float  # of matrix products and attention
    float32: bool  # whether these are of float32 numbers
    sent: float  # bytes to other devices
    span: int  # from the first to the last device of a group that exchanges them
    cycles: float  # as the compiler estimates them; 0 where it does not say
    open_loop: bool  # inside a loop of unknown length


class _Op(NamedTuple):
    name: str
    shape: str
    kind: str
    rest: str  # operands and attributes

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.rest.split("), ")[0])

    def called(self, role: str) -> str:
        """The computation an attribute names; "" where there is none."""
        found = re.search(rf"\b{role}=%([\w.\-]+)", self.rest)
        return found[1] if found else ""


_Computation = Mapping[str, _Op]


def kernels(text: str, *, open_trips: int = 1) -> list[Kernel]:
    """The kernels of a program in the order in which they start.

    Args:
      text: `compiled.as_text()`.
      open_trips: how often a loop of unknown length runs.

    Raises:
      ValueError: it is no program: there is no ENTRY.
    """
    computations, entry = _parsed(text)
    if not entry:
        raise ValueError("no ENTRY computation: give what compiled.as_text() prints")
    walker = _Walker(computations, Sources(text), open_trips)
    return list(walker.walk(entry, 1, False))


def seconds(kernel: Kernel, chip: Chip) -> float:
    """How long a kernel takes once: what a TPU's compiler says, or else a roofline."""
    if kernel.cycles and chip.clock:
        return kernel.cycles / chip.clock
    parts = _parts(kernel, chip)
    return parts.pop("launches") + max(parts.values())


def bound(kernel: Kernel, chip: Chip) -> str:
    """What a kernel waits for: products, memory, links or launches."""
    parts = _parts(kernel, chip)
    return max(parts, key=parts.__getitem__)


def _parts(kernel: Kernel, chip: Chip) -> dict[str, float]:
    """Seconds of each of the four, if it were alone."""
    tpu = chip.clock > 0
    # what is started there and awaited later hides behind others
    hidden = tpu and kernel.kind.endswith("-start")
    return {
        "products": kernel.flops / (chip.reached_float32 if kernel.float32 else chip.reached),
        "memory": 0.0 if hidden else kernel.bytes / chip.streamed,
        "links": kernel.sent / chip.reach(kernel.span) if kernel.sent else 0.0,
        "launches": 0.0 if tpu else LAUNCH,
    }


def size(shape: str) -> float:
    """Bytes of an array, or of a tuple of arrays, as XLA writes its type."""
    return sum(_width(kind) * math.prod(dims) for kind, dims in _arrays(shape))


def _width(kind: str) -> float:
    return _BYTES.get(kind) or int(re.findall(r"\d+", kind)[0]) / 8


def _arrays(shape: str) -> list[tuple[str, list[int]]]:
    return [(kind, [int(n) for n in dims.split(",") if n]) for kind, dims in _ARRAY.findall(shape)]


def _parsed(text: str) -> tuple[Mapping[str, _Computation], str]:
    """The computations by name, and the name of the one that is the program."""
    computations: dict[str, dict[str, _Op]] = {}
    current: dict[str, _Op] = {}
    entry = ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = computations[head[2]] = {}
            entry = head[2] if head[1] else entry
        elif found := _OP.match(line):
            current[found[1]] = _Op(*found.groups())
    return computations, entry


class _Walker(NamedTuple):
    computations: Mapping[str, _Computation]
    sources: Sources
    open_trips: int

    def walk(self, name: str, times: int, is_open: bool) -> Iterator[Kernel]:
        """The kernels of a computation that runs `times` times."""
        computation = self.computations.get(name, {})
        for op in computation.values():
            target = re.search(r'custom_call_target="([^"]*)"', op.rest)
            kind = target[1] if target else op.kind
            if kind in _NOTHING or kind.endswith("-done"):
                continue
            if op.kind == "while":
                known = _trips(op, self.computations.get(op.called("condition"), {}))
                trips = known or self.open_trips
                yield from self.walk(op.called("body"), times * trips, is_open or not known)
            elif op.kind == "call":
                yield from self.walk(op.called("to_apply"), times, is_open)
            elif op.kind == "conditional":
                for branch in _branches(op):
                    yield from self.walk(branch, times, is_open)
            else:
                yield self._kernel(op, computation, times, is_open)._replace(kind=kind)

    def _kernel(self, op: _Op, within: _Computation, times: int, is_open: bool) -> Kernel:
        cycles = re.search(r'"estimated_cycles":"(\d+)"', op.rest)
        inner = self.computations.get(op.called("calls"), {})
        return Kernel(
            kind=op.kind,
            shape=op.shape.partition("{")[0],
            source=self.sources.of(op.name, op.rest),
            times=times,
            bytes=_read(op, within, inner) + _written(op, inner),
            flops=sum(_products(op, within, inner).values()),
            float32="f32" in _products(op, within, inner),
            sent=_sent(op, within),
            span=_span(op),
            cycles=float(cycles[1]) if cycles else 0.0,
            open_loop=is_open,
        )


def _trips(op: _Op, condition: _Computation) -> int:
    """How often a loop runs; 0 where that is not known. A TPU's compiler does not write it down,
    but a condition that only compares with a number says it: all begin at 0."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', op.rest)
    if known:
        return int(known[1])
    *_, last = (None, *condition.values())
    if last is None or last.kind != "compare" or "direction=LT" not in last.rest:
        return 0
    limit = condition.get(last.operands[1])
    return int(limit.rest.partition(")")[0]) if limit and limit.kind == "constant" else 0


def _branches(op: _Op) -> list[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", op.rest)
    return re.findall(r"%([\w.\-]+)", listed[1]) if listed else []


# ------------------------------------------------------------------- bytes


def _read(op: _Op, within: _Computation, inner: _Computation) -> float:
    """Bytes an operation reads: whole operands, or what a fusion takes of them."""
    parameters = {
        int(o.rest.partition(")")[0]): o.name for o in inner.values() if o.kind == "parameter"
    }
    users = collections.defaultdict(list)
    for o in inner.values():
        for operand in o.operands:
            users[operand].append(o)

    def used(name: str, whole: float, depth: int = 0) -> float:
        total = 0.0
        for user in users[name]:
            if user.kind in _SLICES:
                total += size(user.shape)
            elif user.kind in _SAME and depth < 4:
                total += used(user.name, whole, depth + 1)
            elif user.kind not in _UPDATES or user.operands[0] != name:
                return whole
        return min(whole, total) if users[name] else whole

    return sum(
        used(parameters.get(number, ""), size(within[name].shape))
        for number, name in enumerate(op.operands)
        if name in within
    )


def _written(op: _Op, inner: _Computation) -> float:
    """Bytes an operation writes; a fusion that updates slices in place writes those alone."""
    updates = [o for o in inner.values() if o.kind in _UPDATES]
    if not updates or size(op.shape) != sum(size(o.shape) for o in updates):
        return size(op.shape)
    news = (o.operands[_UPDATES[o.kind]] for o in updates)
    return sum(size(inner[new].shape) for new in news if new in inner)


def _sent(op: _Op, within: _Computation) -> float:
    """Bytes a collective sends: of the larger of its operands and results."""
    factor = _SHARED.get(op.kind.removesuffix("-start"), 0.0)
    given = sum(size(within[name].shape) for name in op.operands if name in within)
    # what is only started may hold its operands among its results
    made = size(op.shape) - (given if op.kind.endswith("-start") else 0.0)
    return factor * max(given, made)


def _span(op: _Op) -> int:
    """How far the devices of a group lie apart; groups are listed, or [groups, size] of all."""
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", op.rest)
    if listed:
        numbers = [int(n) for n in listed[1].split(",")]
        return max(numbers) - min(numbers) + 1
    strided = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[[\d,]+\](T?)", op.rest)
    if strided is None:
        return 1
    groups, each = int(strided[1]), int(strided[2])
    return groups * (each - 1) + 1 if strided[3] else each


# ------------------------------------------------------------------- operations


def _products(op: _Op, within: _Computation, inner: _Computation) -> Mapping[str, float]:
    """Operations of products and attention, by the type of what is multiplied; all else is free
    beside its bytes."""
    if op.kind == "custom-call" and ("__cudnn$fmha" in op.rest or "splash_mha" in op.name):
        return {"bf16": _attention(op, within)}
    found: dict[str, float] = collections.defaultdict(float)
    for o, around in [(o, inner) for o in inner.values()] or [(op, within)]:
        operand = around.get(o.operands[0]) if o.operands else None
        if operand and (count := _product(o, operand)):
            found[_arrays(operand.shape)[0][0]] += count
    return found


def _product(op: _Op, operand: _Op) -> float:
    """Two per element of the result and entry of the axes that are summed over."""
    results = _arrays(op.shape)
    if op.kind not in ("dot", "custom-call", "convolution") or not results:
        return 0.0
    dims, outputs = _arrays(operand.shape)[0][1], math.prod(results[0][1])
    if op.kind == "convolution":  # how a TPU's compiler writes products
        return 2.0 * outputs * _window(op, dims)
    summed = re.search(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)', op.rest)
    if summed is None:
        return 0.0
    return 2.0 * outputs * math.prod(dims[int(i)] for i in re.findall(r"\d+", summed[1]))


def _window(op: _Op, dims: list[int]) -> float:
    """Entries that one element of a convolution's result sums: its features, and the places of its
    window that lie on the operand, on average over the result; padding is free."""
    labels = re.search(r"dim_labels=(\w+)_\w+->(\w+)", op.rest)
    if labels is None:
        return dims[1]
    entries: float = dims[labels[1].index("f")]
    results = _arrays(op.shape)[0][1]
    window = re.search(r"window=\{([^}]*)\}", op.rest)
    given = dict(part.split("=") for part in window[1].split()) if window else {}
    for axis, size in enumerate(map(int, given.get("size", "").split("x") if given else ())):
        length, places = dims[labels[1].index(str(axis))], results[labels[2].index(str(axis))]
        entries *= _overlap(size, length, places, {k: v.split("x")[axis] for k, v in given.items()})
    return entries


def _overlap(size: int, length: int, places: int, given: Mapping[str, str]) -> float:
    """Of a window at so many places along an axis, the entries of the operand under it on average;
    `lhs_dilate` puts gaps between these."""
    stride, gap, spread = (int(given.get(k, "1")) for k in ("stride", "lhs_dilate", "rhs_dilate"))
    before = int(given.get("pad", "0_0").partition("_")[0])
    at = np.arange(places)[:, None] * stride + np.arange(size) * spread - before
    return float(np.sum((at % gap == 0) & (at >= 0) & (at <= (length - 1) * gap)) / places)


def _attention(op: _Op, within: _Computation) -> float:
    """Two products over half of all pairs, and five in the backward pass; of queries and keys
    [B, T, heads, D] for cuDNN, [B, heads, T, D] for the TPU's kernel, there without B where it is
    1 and behind the blocks of its mask."""
    arrays = [_arrays(within[name].shape) for name in op.operands if name in within]
    floats = [a[0][1] for a in arrays if len(a) == 1 and a[0][0] in ("bf16", "f16", "f32")]
    q, k = [dims for dims in floats if len(dims) >= 3][:2]
    products = 5 if "Backward" in op.rest or "_dkv_" in op.name else 2
    return 2.0 * products * math.prod(q) * max(k[-3:-1]) / 2
