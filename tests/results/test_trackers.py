"""Trackers: the same numbers elsewhere, one run there for one run here, and no harm done."""

import json
import sys
import types

import pytest

from atod_jax.results.metrics import Writer
from atod_jax.results.trackers import TRACKERS, Tracker, open_trackers

OPTIONS = {"seed": 0, "optim.lr": 1e-4, "eval.temperatures": (1.0, 0.4), "student.path": "a"}


class Service:
    """Stands for the three packages: keeps what they are told, by run."""

    def __init__(self, monkeypatch):
        self.runs, self.begun, self.params = {}, [], {}
        init = types.SimpleNamespace(init=self.init)
        for name in ("wandb", "trackio"):
            monkeypatch.setitem(sys.modules, name, init)
        client = types.SimpleNamespace(MlflowClient=lambda: self)
        monkeypatch.setitem(sys.modules, "mlflow", types.SimpleNamespace(tracking=client))
        monkeypatch.setitem(sys.modules, "mlflow.tracking", client)

    def init(self, *, name, config, resume, id=None, **_):
        assert resume == "allow"
        run = id or name
        self.begun.append(run)
        self.params[run] = config

        def log(values, step):
            self.runs.setdefault(run, []).append((step, values))

        return types.SimpleNamespace(log=log, finish=lambda: None)

    # MLflow's client
    def get_experiment_by_name(self, name):
        return None

    def create_experiment(self, name):
        return "1"

    def create_run(self, experiment, run_name):
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=f"{run_name}-of-mlflow"))

    def log_param(self, run, name, value):
        self.params.setdefault(run, {})[name] = value

    def update_run(self, run, status):
        self.begun.append(run)

    def log_metric(self, run, name, value, step):
        self.runs.setdefault(run, []).append((step, {name: value}))

    def set_terminated(self, run):
        pass


@pytest.mark.parametrize("name", TRACKERS)
def test_a_resumed_run_goes_on_in_its_place(tmp_path, monkeypatch, name):
    service = Service(monkeypatch)
    for first in (0, 1):
        trackers = open_trackers([name], tmp_path, OPTIONS)
        writer = Writer(tmp_path, resume_step=first, trackers=trackers)
        writer.scalars(first, {"loss/total": 0.5, "kl/verb": float("nan")})
        writer.close()
    (run,) = service.runs
    assert service.begun == [run, run]
    assert service.runs[run] == [(0, {"loss/total": 0.5}), (1, {"loss/total": 0.5})]
    assert service.params[run]["student.path"] == "a"
    assert list(json.loads((tmp_path / "trackers.json").read_text())) == [name]


def test_what_a_tracker_cannot_take_costs_one_line(tmp_path, monkeypatch, capsys):
    def refuse(values, step):
        raise ConnectionError("no\nroute")

    there = Tracker("wandb", refuse, lambda: refuse({}, 0))
    monkeypatch.setitem(TRACKERS, "wandb", lambda out, options: there)
    writer = Writer(tmp_path, trackers=open_trackers(["wandb"], tmp_path, OPTIONS))
    for step in range(3):
        writer.scalars(step, {"loss/total": 1.0})
    writer.close()
    assert capsys.readouterr().err == "warning: wandb: ConnectionError: no route\n"
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_tracker_that_is_not_there_is_said_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ValueError, match=r'track=.trackio.* pip install "atod_jax\[trackio\]"'):
        open_trackers(["trackio"], tmp_path, OPTIONS)


@pytest.mark.parametrize("name", TRACKERS)
def test_the_package_itself_takes_a_run_offline(tmp_path, monkeypatch, name):
    pytest.importorskip(name, reason=f'pip install "atod_jax[{name}]"')
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for first in (0, 2):
        (tracker,) = open_trackers([name], tmp_path, OPTIONS)
        for step in range(first, first + 2):
            tracker.scalars({"loss/total": 0.5, "eval/success/pick": 0.25}, step)
        tracker.close()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(name in str(path.relative_to(tmp_path)) for path in files)
