"""The end of a run: its report and, if asked for, the student as a Hugging Face folder."""

import json
import sys
from pathlib import Path
from typing import Any

import jax

import atod_jax
from atod_jax import cluster
from atod_jax.config import Run, chosen, to_plain
from atod_jax.models.checkpoint_io import save_hf
from atod_jax.models.written import require_place
from atod_jax.results.metrics import read_records
from atod_jax.results.page import write_page
from atod_jax.results.picture import draw_episode
from atod_jax.results.plots import save
from atod_jax.results.provenance import config_digest, git_commit, package_versions, took
from atod_jax.results.report import curve_of, write_report
from atod_jax.run.cli import command_line
from atod_jax.run.closing import References, farewell
from atod_jax.run.models import Model
from atod_jax.run.workdir import LEFT_BY_A_START, read_record
from atod_jax.sharding import to_host

PICTURE = "episode.png"


def require_export(cfg: Run, workdir: Path) -> None:
    """Refuses an export that could not be written at the end.

    Raises:
      ValueError: something there would be lost, such as what the run reads or writes itself.
    """
    if cfg.export:
        models = [path for path in (cfg.student.path, cfg.teacher.path) if path]
        written = [workdir / name for name in (*LEFT_BY_A_START, "episodes")]
        require_place(cfg.export, "export", kept=[*models, *written])


def conclude(cfg: Run, out: Path, student: Model, *, params: Any, references: References) -> None:
    """Writes the report and the export, in this order: where the model is, so is its report.

    Args:
      cfg: of the run.
      out: its workdir.
      student: the model that was trained.
      params: its parameters at the end.
      references: the evaluations at the start, at the end and of the teacher.

    Raises:
      ValueError: the export has failed; the report is written all the same.
    """
    if cfg.export:
        params = jax.tree.map(to_host, student.lm.plain(params))  # of every device and process
    if not cluster.is_first():
        return
    _report(cfg, out, references, exported=True)
    print(farewell(cfg, out, references), flush=True)
    print(f"report: {out / 'report.md'}", flush=True)
    _write_page(out)
    if problem := _export(cfg, student, params):
        _report(cfg, out, references, exported=False)
        raise ValueError(
            f"the export has failed ({problem}); `python -m atod_jax.export --checkpoint={out} "
            "--out=DIR` writes the student elsewhere"
        ) from problem


def _report(cfg: Run, out: Path, references: References, *, exported: bool) -> None:
    records = read_records(out)
    write_report(
        out,
        title=f"{cfg.algorithm.name} on {cfg.env.name}, {cfg.total_steps} steps",
        command=command_line(),
        evaluations=references,
        curve=curve_of(records),
        curve_temperature=cfg.eval.curve_temperature,
        settings=_settings(cfg) | took(records),
        artifacts=_artifacts(cfg, exported=exported),
        chosen=chosen(cfg),
        example=_example(out),
        picture=_picture(out),
    )


def _example(out: Path) -> str:
    """The first of the episodes that were shown last, as text."""
    shown = sorted((out / "transcripts").glob("*-eval.txt"))
    text = shown[-1].read_text(encoding="utf-8", errors="replace") if shown else ""
    return text.split("\n\n=====")[0]


def _picture(out: Path) -> str:
    """Draws the same episode; the picture's name, "" where there is no episode to be read."""
    try:
        with sorted((out / "transcripts").glob("*-eval.jsonl"))[-1].open(encoding="utf-8") as file:
            record = json.loads(next(file))
    except (IndexError, StopIteration, ValueError, OSError):
        return ""
    save(draw_episode(record), out / PICTURE)
    return PICTURE


def _write_page(out: Path) -> None:
    """Curves and episodes to look at; a file that cannot be read costs the page, not the run."""
    try:
        page = write_page(out / "run.html", [read_record(str(out))])
    except ValueError as error:
        print(f"warning: no page of this run: {error}", file=sys.stderr)
    else:
        print(f"page:   {page.path}")


def _export(cfg: Run, student: Model, params: Any) -> Exception | None:
    """Writes the student where the run wants it; what went wrong must not cost the report."""
    if not cfg.export:
        return None
    try:
        save_hf(
            cfg.export,
            student.lm.config,
            params,
            tokenizer=student.tokenizer,
            source=student.source,
        )
    except (OSError, ValueError) as error:
        return error
    return None


def _settings(cfg: Run) -> dict[str, Any]:
    device = jax.devices()[0]
    commit = git_commit(Path(atod_jax.__file__).parent)
    return (
        ({"git commit": commit} if commit else {})
        | {
            "config digest": config_digest(to_plain(cfg)),
            "student": cfg.student.path,
            "teacher": cfg.teacher.path or "none",
            "seed": cfg.seed,
            "evaluation split": cfg.eval.split,
            "devices": f"{jax.device_count()} x {device.platform} {device.device_kind}",
        }
        | package_versions()
    )


def _artifacts(cfg: Run, *, exported: bool) -> dict[str, str]:
    found = {
        "metrics": "metrics.jsonl, tensorboard/",
        "curves and episodes, token by token": "run.html",
        "transcripts with d, h and w per turn": "transcripts/",
        "evaluations with their episodes": "evaluations/",
        "checkpoints": "checkpoints/",
    }
    if cfg.record:
        found["training episodes, a TFDS data set"] = "episodes/"
    if cfg.export and exported:
        found["trained student, Hugging Face format"] = cfg.export
    return found
