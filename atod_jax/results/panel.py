"""The panel of a run on a terminal: a few rows of text, from the scalars so far."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from atod_jax.texts import one_line

BARS = "▁▂▃▄▅▆▇█"
WIDE = 30  # columns of a bar or a sparkline, at most
MOST_KINDS = 12  # of tasks
PHASES = ("rollout", "pack", "score", "record", "update", "compiling")


@dataclasses.dataclass
class History:
    """What the panel shows of the records of a run (`metrics.jsonl`)."""

    success: list[float] = dataclasses.field(default_factory=list)  # of every step's episodes
    curve: list[float] = dataclasses.field(default_factory=list)  # of every evaluation
    step: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # the latest step
    evaluation: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # the latest
    restarts: int = 0  # of environments, so far

    def book(self, record: Mapping[str, Any]) -> None:
        """One more record, of a step or of an evaluation."""
        if "rollout/success" in record:
            self.step = record
            self.success.append(_number(record, "rollout/success"))
            self.restarts += int(record.get("env/restarts") or 0)
        if "eval/success" in record:
            self.evaluation = record
            self.curve.append(_number(record, "eval/success"))


class Underway(NamedTuple):
    """Episodes that are being played."""

    name: str
    done: int
    total: int  # episodes


class Status(NamedTuple):
    """Where a run is."""

    title: str
    done: int
    total: int  # steps; 0: nothing is trained
    left: float  # seconds; nan: not known yet
    underway: Underway | None = None


def panel(status: Status, history: History) -> RenderableType:
    """A row for everything that is known, cut where the terminal is narrow."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(style="dim", no_wrap=True, min_width=11)
    grid.add_column(overflow="ellipsis", ratio=1)
    rows = [*_run(status, history)] if status.total else []
    if status.underway is not None:
        name, done, total = status.underway
        rows.append(("playing", _bar(done, total, f"{done}/{total}  {name}")))
    for label, content in rows:
        grid.add_row(label, content)
    return grid


def clock_text(seconds: float) -> str:
    """Hours, minutes and seconds, as in 1:02:03 or 2:03; -:-- where they are not known."""
    if not math.isfinite(seconds):
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def sparkline(shares: Sequence[float], width: int = WIDE) -> str:
    """Numbers of [0, 1] as bars, at most `width` of them, each the mean of its neighbours."""
    count = min(width, len(shares))
    edges = [round(i * len(shares) / count) for i in range(count + 1)] if count else []
    pieces = [shares[a:b] for a, b in itertools.pairwise(edges)]
    return "".join(_level(math.fsum(piece) / len(piece)) for piece in pieces)


def _level(share: float) -> str:
    return BARS[min(len(BARS) - 1, int(share * len(BARS)))] if share >= 0 else " "


def _run(status: Status, history: History) -> Iterator[tuple[str, RenderableType]]:
    step, found = history.step, history.evaluation
    what = f"{status.done}/{status.total}  {clock_text(status.left)} left  {status.title}"
    yield "step", _bar(status.done, status.total, what)
    if step:
        yield (
            "success",
            _spark(history.success, f"{_percent(step, 'rollout/success')} % in the last step"),
        )
    if found:
        bounds = ", ".join(_percent(found, f"eval/success_{end}") for end in ("low", "high"))
        text = f"{_percent(found, 'eval/success')} % [{bounds}] at step {found['step']}"
        yield "held out", _spark(history.curve, text)
        kinds = [key for key in found if key.startswith("eval/success/")]
        if len(kinds) > 1:
            shares = [f"{one_line(key.split('/', 2)[2])} {_percent(found, key)}" for key in kinds]
            more = [f"and {len(kinds) - MOST_KINDS} more"] if len(kinds) > MOST_KINDS else []
            yield "  by type", Text(", ".join(shares[:MOST_KINDS] + more), no_wrap=False)
    signal = [*_named(step, (("kappa", "mix/kappa"), ("rho", "mix/rho")))]
    if "turn_weight/mean" in step:
        ends = ("mean", "min", "max")
        mean, low, high = (f"{_number(step, f'turn_weight/{end}'):.2f}" for end in ends)
        signal.append(f"weights {mean} ({low} to {high})")
    signal += _named(step, (("kl", "kl/token"),))
    if signal:
        yield "signal", _line(signal)
    if step:
        yield "phases", _line(_phases(step))
        yield "speed", _line(_speed(step, history.restarts))


def _phases(step: Mapping[str, Any]) -> Iterator[str]:
    for phase in PHASES:
        seconds = _number(step, f"seconds/{phase}")
        if seconds >= 0.05:
            yield f"{phase} {seconds:.1f} s"


def _speed(step: Mapping[str, Any], restarts: int) -> Iterator[str]:
    yield f"{_number(step, 'seconds/step'):.1f} s/step"
    written = _number(step, "rollout/action_tokens") * _number(step, "rollout/rows")
    playing = _number(step, "seconds/rollout")
    if playing > 0:
        yield f"{written / playing:,.0f} tokens/s written"
    yield f"{restarts} restart{'' if restarts == 1 else 's'} of environments"


def _named(step: Mapping[str, Any], names: Sequence[tuple[str, str]]) -> Iterator[str]:
    return (f"{name} {_number(step, key):.2f}" for name, key in names if key in step)


def _number(record: Mapping[str, Any], key: str) -> float:
    """nan where it is missing, or was not finite when it was written."""
    value = record.get(key)
    return math.nan if value is None else float(value)


def _percent(record: Mapping[str, Any], key: str) -> str:
    return f"{100 * _number(record, key):.0f}"


def _spark(shares: Sequence[float], text: str) -> Text:
    return Text.assemble((sparkline(shares), "cyan"), " ", text, no_wrap=True)


def _line(parts: Iterable[str]) -> Text:
    return Text("  ".join(parts), no_wrap=True)


def _bar(done: int, total: int, text: str) -> RenderableType:
    row = Table.grid(padding=(0, 1))
    row.add_column(max_width=WIDE)
    row.add_column(no_wrap=True, overflow="ellipsis")
    row.add_row(ProgressBar(total=total, completed=min(done, total), width=WIDE), Text(text))
    return row
