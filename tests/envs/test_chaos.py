"""Training while somebody kills and stops environment workers at random: the same numbers."""

import json
import os
import random
import signal
import threading

import pytest
from runs import start
from troubled import SlowHome

from atod_jax.envs import alfworld
from atod_jax.envs.pool import EnvPool
from atod_jax.run import parts
from configs import household

# what may differ between two equal runs
OURS_ALONE = ("seconds/", "env/", "rollout/kept_steps")


class Vandal(threading.Thread):
    """Kills or stops a random worker of the run every now and then."""

    def __init__(self, pools):
        super().__init__(daemon=True)
        self.pools, self.done, self.deeds = pools, threading.Event(), {"kill": 0, "stop": 0}
        self._rng = random.Random(0)

    def run(self):
        while not self.done.wait(self._rng.uniform(0.1, 0.5)):
            pids = [pid for pool in self.pools for pid in pool.pids]
            if pids:
                deed = self._rng.choice(["kill", "kill", "stop"])
                try:
                    os.kill(
                        self._rng.choice(pids),
                        signal.SIGKILL if deed == "kill" else signal.SIGSTOP,
                    )
                    self.deeds[deed] += 1
                except ProcessLookupError:
                    pass


@pytest.fixture
def pools(monkeypatch):
    """The pools that a run makes."""
    made = []

    def make(*args):
        made.append(EnvPool(*args))
        return made[-1]

    monkeypatch.setattr(parts, "EnvPool", make)
    plugin = alfworld.ENVIRONMENT._replace(make=SlowHome)
    monkeypatch.setattr(parts, "environment_of", lambda cfg: plugin)
    return made


def run(workdir, timeout):
    """(metrics that must not differ, those of the environments) of a short training run."""
    cfg = household.get_config("smoke")
    cfg.eval.tasks = cfg.eval.final_tasks = cfg.eval.slots = 8
    cfg.eval.temperatures = (1.0,)
    cfg.env.workers = 2
    cfg.env.timeout = timeout
    cfg.env.attempts = 100
    start(cfg, workdir)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    same = [
        {k: v for k, v in line.items() if not k.startswith(OURS_ALONE) and k != "time"}
        for line in lines
    ]
    return same, [line for line in lines if "env/restarts" in line]


def test_chaos_does_not_change_a_single_number(tmp_path, pools):
    # a short time limit finds stopped workers soon, and on a busy machine slow ones too
    quiet, calm = run(tmp_path / "quiet", timeout=60.0)
    vandal = Vandal(pools)
    vandal.start()
    try:
        disturbed, busy = run(tmp_path / "disturbed", timeout=0.3)
    finally:
        vandal.done.set()
        vandal.join()
    assert len(quiet) > 3
    assert disturbed == quiet
    assert sum(line["env/restarts"] for line in calm) == 0
    assert sum(line["env/restarts"] for line in busy) > 3
    assert vandal.deeds["kill"] > 3
    assert vandal.deeds["stop"] > 3
    assert all(line["rollout/failed_groups"] == 0 for line in busy)
