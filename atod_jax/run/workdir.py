"""The folder of a run: what pins it, and how another program finds the run in it.

`run_config.json` holds the run's options from its first finished step on; until then
`starting.json` does, and a start with other options takes the folder over.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from atod_jax import cluster, config
from atod_jax.options import plugins
from atod_jax.options.tree import flatten, show
from atod_jax.results import runs
from atod_jax.results.checkpoint import require_readable
from atod_jax.results.files import write_text
from atod_jax.results.lock import locked
from atod_jax.texts import read_object

RECORD, STARTING = "run_config.json", "starting.json"
# what a run writes before its first step is finished
LEFT_BY_A_START = ("checkpoints", "evaluations", "transcripts", "tensorboard", "metrics.jsonl")


@contextlib.contextmanager
def claimed(folder: str) -> Iterator[Path]:
    """The folder, made where it is missing, for this run alone while the block lasts.

    Raises:
      ValueError: another run is at work in it, it is a file, or has a name that Orbax cannot read.
    """
    out = Path(folder)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--workdir={out} is a file; name a folder")
    require_readable(out)
    if not cluster.is_first():
        yield out
        return
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        yield out


def open_workdir(out: Path, cfg: config.Run) -> None:
    """Checks that the folder belongs to the run that goes on, or makes it this run's.

    Raises:
      ValueError: it holds another run, with the options that differ.
    """
    if (out / RECORD).is_file():
        _require_same(out, _read(out / RECORD), cfg)
    if cluster.is_first() and not (out / RECORD).is_file():
        _take_over(out, cfg)
    cluster.first_says(None)  # nobody reads what is there before it is known to belong here


def pin(out: Path, cfg: config.Run) -> None:
    """Makes the folder this run's for good, once; called when a step is finished.

    Later only a number of steps that has grown is noted.
    """
    if not cluster.is_first():
        return
    record = out / RECORD
    if not record.is_file():
        write_text(record, _json(cfg))
        (out / STARTING).unlink(missing_ok=True)
    elif (old := _read(record)).total_steps < cfg.total_steps:
        write_text(record, _json(dataclasses.replace(old, total_steps=cfg.total_steps)))


def first_step(cfg: config.Run, saved: int) -> int:
    """The step a run goes on from.

    Raises:
      ValueError: it is beyond the last one.
    """
    if saved > cfg.total_steps:
        raise ValueError(
            f"total_steps={cfg.total_steps}: this run has done {saved} steps; set "
            f"--config.total_steps={saved} or more"
        )
    return saved


def read_run(workdir: Path) -> config.Run:
    """The options of the run in a folder; an option that is younger than the run has its default.

    Raises:
      FileNotFoundError: the folder holds no run.
      ValueError: the record is damaged, or of a version with other options.
    """
    for name in (RECORD, STARTING):
        if (workdir / name).is_file():
            return _read(workdir / name)
    raise FileNotFoundError(f"{workdir} holds no run; name the --workdir of one of train")


def read_definition(workdir: Path) -> dict[str, Any]:
    """The options that define the run in a folder, by path; those of a plug-in that is not at hand
    are taken as they stand there.

    Raises:
      FileNotFoundError: the folder holds no run.
      ValueError: its record is damaged, or of a version with other options.
    """
    record = workdir / RECORD
    if not record.is_file():
        return config.defining(read_run(workdir))
    plain = _json_of(record)
    absent = [group for group in config.GROUPS if not _is_at_hand(group, plain.get(group, {}))]
    rest = {name: value for name, value in plain.items() if name not in absent}
    found = config.defining(_resolved(record, rest))
    for group in absent:
        found = {path: value for path, value in found.items() if not path.startswith(f"{group}.")}
        raw = flatten(plain[group], f"{group}.")
        free = {path for path, leaf in config.catalogue().items() if not leaf.about.pins}
        found |= {path: value for path, value in raw.items() if path not in free}
    return found


def _is_at_hand(group: str, section: Mapping[str, Any]) -> bool:
    try:
        return "name" not in section or bool(plugins.load(config.GROUPS[group], section["name"]))
    except ValueError:
        return False


def _json_of(record: Path) -> dict[str, Any]:
    plain = read_object(record, "restore the file")
    sections = [plain.get(group, {}) for group in config.GROUPS]
    named = all(isinstance(s, dict) and isinstance(s.get("name", ""), str) for s in sections)
    if not (named and "seed" in plain and "student" in plain):
        raise ValueError(f"{record} is damaged: it holds no options of a run; restore the file")
    return plain


def _read(record: Path) -> config.Run:
    return _resolved(record, _json_of(record))


def _resolved(record: Path, plain: Mapping[str, Any]) -> config.Run:
    try:
        return config.resolve(plain, model_required=False)
    except ValueError as error:
        first, *more = [line.strip() for line in str(error).splitlines() if "invalid" not in line]
        others = f" and {len(more)} more" if more else ""
        raise ValueError(
            f"{record} does not hold options of this version ({first}{others}); it was made by "
            "another one, which can go on with it; to read the run here, name its options with "
            "--config"
        ) from error


def _json(cfg: config.Run) -> str:
    return json.dumps(config.to_plain(cfg), indent=2) + "\n"


def _take_over(out: Path, cfg: config.Run) -> None:
    """Clears away what a start with other options has left, and says whose start this is.

    Raises:
      ValueError: there are finished steps or results, and nothing says of which run.
    """
    start = out / STARTING
    left = [out / name for name in LEFT_BY_A_START if (out / name).exists()]
    if start.is_file():
        same = not differences(config.defining(_read(start)), config.defining(cfg))
        left = [] if same else left
    if left and (not start.is_file() or _has_finished_steps(out)):
        raise ValueError(
            f"--workdir={out} holds {', '.join(path.name for path in left)} of a run, but its "
            f"{RECORD} is missing; restore that file, or use a new folder"
        )
    if left:
        print(f"{out}: cleared what a start with other options had left", file=sys.stderr)
    for path in left:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_text(start, _json(cfg))


def _has_finished_steps(out: Path) -> bool:
    steps = [p.name for p in (out / "checkpoints").glob("*") if p.name.isdecimal()]
    metrics = out / "metrics.jsonl"
    return any(map(int, steps)) or (metrics.is_file() and b'"loss/total"' in metrics.read_bytes())


def _require_same(out: Path, old: config.Run, new: config.Run) -> None:
    found = differences(config.defining(old), config.defining(new))
    scheduled = new.optim.schedule != "constant"
    if "total_steps" in found and new.total_steps > old.total_steps and not scheduled:
        del found["total_steps"]
    if not found:
        return
    why = ""
    if list(found) == ["total_steps"]:
        depends = f"optim.schedule={new.optim.schedule} depends on it"
        why = f"; {depends if scheduled else 'it may grow, not shrink'}"
    raise ValueError(
        f"--workdir={out} holds another run: {_listed(found)}{why}; use a new folder, or the "
        "options of that run to go on with it"
    )


def _listed(found: Mapping[str, tuple[Any, Any]], most: int = 5) -> str:
    """The differences in words; of another plug-in its name alone, not the options it brings."""
    named = tuple(f"{group}." for group in ("algorithm", "env") if f"{group}.name" in found)
    shown = [
        f"{path} ({show(a)} there, {show(b)} now)"
        for path, (a, b) in found.items()
        if not (path.startswith(named) and "-" in (a, b))
    ]
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(shown[:most]) + more


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The options of which two runs have other values, "-" where one has no such option."""
    paths = sorted(old.keys() | new.keys())
    pairs = {path: (old.get(path, "-"), new.get(path, "-")) for path in paths}
    return {path: (a, b) for path, (a, b) in pairs.items() if not _same(a, b)}


def _same(a: Any, b: Any) -> bool:
    """Equal, or two ways to write the place of the same folder."""
    if a == b:
        return True
    if isinstance(a, str) and isinstance(b, str) and a and b:
        with contextlib.suppress(OSError):  # one of them is not there, or not to be looked at
            return os.path.samefile(a, b)
    return False


def read_record(argument: str) -> runs.RunRecord:
    """The run that `[NAME=]WORKDIR` says.

    Raises:
      FileNotFoundError: there is none.
      ValueError: something in the folder is damaged.
    """
    name, equals, folder = argument.partition("=")
    if not equals or Path(argument).is_dir():  # the name of a folder may hold a "="
        name, folder = "", argument
    return runs.read_run(Path(folder), read_definition(Path(folder)), name)
