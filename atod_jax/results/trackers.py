"""The numbers of a run in the trackers that people keep theirs in.

Each is a package of its own, imported when it is asked for. What one of them cannot take is said
once and costs nothing else: `metrics.jsonl` has all of it.
"""

import functools
import importlib
import json
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from atod_jax.results.files import write_text
from atod_jax.texts import of_error, read_object

PROJECT = "atod_jax"
IDS = "trackers.json"  # of the run in those that make their own


class Tracker(NamedTuple):
    """A run in one of them."""

    name: str
    scalars: Callable[[Mapping[str, float], int], Any]  # (values, step)
    close: Callable[[], Any]


def _wandb(out: Path, options: Mapping[str, Any]) -> Tracker:
    """Weights & Biases; offline with WANDB_MODE=offline."""
    wandb: Any = importlib.import_module("wandb")
    run = wandb.init(
        project=PROJECT, name=out.name, id=_own_id(out, "wandb", lambda: secrets.token_hex(4)),
        dir=str(out), config=dict(options), resume="allow",
    )  # fmt: skip
    return Tracker("wandb", lambda values, step: run.log(dict(values), step=step), run.finish)


def _mlflow(out: Path, options: Mapping[str, Any]) -> Tracker:
    """MLflow; where to is its MLFLOW_TRACKING_URI."""
    client = importlib.import_module("mlflow.tracking").MlflowClient()
    there = client.get_experiment_by_name(PROJECT)
    experiment = there.experiment_id if there else client.create_experiment(PROJECT)

    def begun() -> str:
        run = client.create_run(experiment, run_name=out.name)
        for name, value in options.items():
            client.log_param(run.info.run_id, name, str(value)[:500])
        return run.info.run_id

    run_id = _own_id(out, "mlflow", begun)
    client.update_run(run_id, status="RUNNING")

    def log(values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            client.log_metric(run_id, name, value, step=step)

    return Tracker("mlflow", log, lambda: client.set_terminated(run_id))


def _trackio(out: Path, options: Mapping[str, Any]) -> Tracker:
    """trackio; its files are under TRACKIO_DIR."""
    trackio: Any = importlib.import_module("trackio")
    name = _own_id(out, "trackio", lambda: f"{out.name}-{secrets.token_hex(4)}")
    plain = {key: list(x) if isinstance(x, tuple) else x for key, x in options.items()}
    run = trackio.init(project=PROJECT, name=name, config=plain, resume="allow", embed=False)
    return Tracker("trackio", lambda values, step: run.log(dict(values), step=step), run.finish)


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}


def open_trackers(names: Sequence[str], out: Path, options: Mapping[str, Any]) -> list[Tracker]:
    """The run in each of them, or what it has there from before.

    Args:
      names: of `TRACKERS`.
      out: the run's folder, whose name it gets.
      options: path -> value, as they keep them.

    Raises:
      ValueError: a package is missing, or does not start.
    """
    found = []
    for name in names:
        try:
            found.append(TRACKERS[name](out, options))
        except ImportError as error:
            raise ValueError(
                f"track={name!r}: {error.name or error} is not installed; "
                f'pip install "atod_jax[{name}]", or leave it out'
            ) from error
        except Exception as error:  # each has kinds of its own
            raise ValueError(f"track={name!r} does not start: {of_error(error)}") from error
    return [_forgiving(tracker) for tracker in found]


def _own_id(out: Path, name: str, make: Callable[[], str]) -> str:
    """What the run is called there; made once, so that a resumed run goes on in its place."""
    path = out / IDS
    ids = read_object(path, "restore it") if path.is_file() else {}
    if name not in ids:
        ids[name] = make()
        write_text(path, json.dumps(ids))
    return ids[name]


def _forgiving(tracker: Tracker) -> Tracker:
    """The same, whose first failure is said and whose later ones are not."""
    failed = []

    def guarded(call: Callable[..., Any], *args: Any) -> None:
        try:
            call(*args)
        except Exception as error:
            if not failed:
                print(f"warning: {tracker.name}: {of_error(error)}", file=sys.stderr, flush=True)
            failed.append(error)

    return tracker._replace(
        scalars=functools.partial(guarded, tracker.scalars),
        close=functools.partial(guarded, tracker.close),
    )
