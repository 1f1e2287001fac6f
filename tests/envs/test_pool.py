"""The pool: workers, play in this process, and every way in which an environment can fail."""

import functools
import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from troubled import Counter

from atod_jax.envs import alfworld, processes
from atod_jax.envs.base import Observation
from atod_jax.envs.pool import EnvPool, Failure, PoolConfig
from atod_jax.records import Task


def tasks(*payloads):
    return [Task(id=f"t{k}", kind="k", payload=payload) for k, payload in enumerate(payloads)]


@pytest.fixture
def make_pool(tmp_path):
    pools = []

    def make(workers=2, trouble="", **options):
        options = {"timeout": 3.0, "attempts": 2} | options
        make_env = functools.partial(Counter, str(tmp_path), trouble)
        pools.append(EnvPool(make_env, PoolConfig(workers=workers, **options)))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def texts(results):
    return [r.observation.text for r in results]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_workers_play_the_games_that_this_process_plays():
    cfg = alfworld.Config()
    games = [alfworld.tasks(cfg, "train")[k] for k in range(7)]
    stories = []
    for workers in (0, 3):
        pool = EnvPool(functools.partial(alfworld.make, cfg), PoolConfig(workers=workers))
        shown = pool.reset(games)
        story = [shown]
        for turn in range(4):
            commands = [o.commands[turn % len(o.commands)] for o in shown]
            results = pool.step(list(enumerate(commands)))
            shown = [r.observation for r in results]
            story.append(results)
        stories.append(story)
        pool.close()
    assert stories[0] == stories[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_the_order_of_the_question(make_pool, workers):
    pool = make_pool(workers)
    assert [o.text for o in pool.reset(tasks("", "", ""))] == [
        "t0 starts",
        "t1 starts",
        "t2 starts",
    ]
    assert texts(pool.step([(2, "c"), (0, "a")])) == ["t2 1 c", "t0 1 a"]
    assert pool.take_counts()["steps"] == 2
    assert pool.take_counts()["steps"] == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_slots_answer_when_they_are_ready(make_pool, workers):
    pool = make_pool(workers)
    pool.clear()
    pool.start([(slot, task) for slot, task in enumerate(tasks("", "", ""))])
    answers = {}
    while pool.under_way:
        answers |= dict(pool.poll(wait=True))
    answers |= dict(pool.poll())
    assert {slot: o.text for slot, o in answers.items()} == {k: f"t{k} starts" for k in range(3)}
    assert pool.poll() == pool.poll(wait=True) == []
    pool.submit([(1, "x")])
    pool.start([(0, Task("new", "k", ""))])
    assert texts(pool.step([(2, "d")])) == ["t2 1 d"]
    answers = {}
    while len(answers) < 2:
        answers |= dict(pool.poll(wait=True))
    assert answers[0].text == "new starts"
    assert texts([answers[1]]) == ["t1 1 x"]
    assert texts(pool.step([(0, "y")])) == ["new 1 y"]


@pytest.mark.parametrize("trouble", ["die", "hang", "raise"])
@pytest.mark.parametrize("where", ["step", "reset", "make"])
def test_an_episode_that_fails_once_goes_on_as_if_nothing_happened(make_pool, trouble, where):
    # the first environment is made when the workers are, before any episode
    pool = make_pool(trouble=f"{trouble} later" if where == "make" else "")
    once = f"{trouble} once"
    shown = pool.reset(tasks("", once if where == "reset" else "", "", ""))
    assert [o.text for o in shown] == [f"t{k} starts" for k in range(4)]
    for n, command in enumerate(["a", "b", once if where == "step" else "c", "d"], start=1):
        results = pool.step([(0, "z"), (1, command), (2, "z"), (3, "z")])
        assert texts(results) == [f"t{k} {n} {'z' if k != 1 else command}" for k in range(4)]
    (last,) = pool.step([(1, "e")])
    assert last.won
    counts = pool.take_counts()
    assert counts["restarts"] == (trouble != "raise")
    assert (counts["given_up"], counts["steps"]) == (0, 17)


def test_a_hung_call_is_counted_and_its_worker_replaced(make_pool):
    pool = make_pool(timeout=1.0)
    pool.reset(tasks("", ""))
    before = pool.pids
    pool.step([(0, "a"), (1, "hang once")])
    counts = pool.take_counts()
    assert (counts["timeouts"], counts["restarts"], counts["given_up"]) == (1, 1, 0)
    assert pool.pids[0] == before[0] != pool.pids[1] != before[1]
    assert 1.0 < counts["waited"] < 30


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ("die", "its worker process died"),
        ("hang", "no answer in time"),
        ("raise", "OSError: the disk is on fire"),
    ],
)
def test_an_episode_that_fails_again_and_again_is_given_up_by_name(
    make_pool, trouble, reason, capsys
):
    pool = make_pool(timeout=1.0)
    first, bad = pool.reset(tasks("", trouble))
    assert first == Observation("t0 starts")
    assert bad == Failure("t1", f"reset: {reason}")
    pool.reset(tasks("", ""))
    good, bad = pool.step([(0, "a"), (1, trouble)])
    assert good.observation.text == "t0 1 a"
    assert bad == Failure("t1", f"step({trouble!r}): {reason}")
    assert pool.take_counts()["given_up"] == 2
    assert (
        f"gave up task t1 after 2 failures; step({trouble!r}): {reason}" in capsys.readouterr().err
    )
    assert texts(pool.step([(0, "b")])) == ["t0 2 b"]


def test_in_this_process_an_exception_is_handled_in_the_same_way(make_pool):
    pool = make_pool(workers=0)
    pool.reset(tasks("", "raise once"))
    good, bad = pool.step([(0, "a"), (1, "raise")])
    assert good.observation.text == "t0 1 a"
    assert bad == Failure("t1", "step('raise'): OSError: the disk is on fire")


def test_an_environment_whose_replay_answers_differently_is_given_up(make_pool):
    pool = make_pool(workers=1)
    pool.reset(tasks(""))
    pool.step([(0, "drift")])
    (bad,) = pool.step([(0, "die once")])
    assert "not deterministic" in bad.reason


def test_answers_to_an_abandoned_question_are_ignored(make_pool):
    pool = make_pool()
    pool.reset(tasks("", ""))
    pool.submit([(0, "old"), (1, "old")])
    shown = pool.reset([Task("new0", "k", ""), Task("new1", "k", "")])
    assert [o.text for o in shown] == ["new0 starts", "new1 starts"]
    assert texts(pool.step([(0, "a"), (1, "a")])) == ["new0 1 a", "new1 1 a"]


def test_a_hang_in_an_abandoned_question_is_not_held_against_the_new_episode(make_pool):
    pool = make_pool(workers=1, timeout=1.0, attempts=1)
    pool.reset(tasks(""))
    pool.submit([(0, "hang")])
    assert pool.reset([Task("new", "k", "")]) == [Observation("new starts")]


def test_a_stopped_worker_is_noticed_even_if_it_never_began(make_pool):
    pool = make_pool(workers=1, timeout=1.0)
    pool.reset(tasks(""))
    os.kill(pool.pids[0], signal.SIGSTOP)
    assert texts(pool.step([(0, "a" * 1_000_000)])) == ["t0 1 " + "a" * 1_000_000]


def test_the_fork_server_may_die_too(make_pool):
    pool = make_pool(workers=2)
    pool.reset(tasks("", ""))
    pool._players._fork_server._process.kill()
    for pid in pool.pids:
        os.kill(pid, signal.SIGKILL)
    assert texts(pool.step([(0, "a"), (1, "b")])) == ["t0 1 a", "t1 1 b"]


def test_workers_that_die_idle_again_and_again_stop_the_run(make_pool, monkeypatch):
    monkeypatch.setattr(processes, "IDLE_DEATHS", 0)
    pool = make_pool(workers=1)
    pool.reset(tasks(""))
    os.kill(pool.pids[0], signal.SIGKILL)
    with pytest.raises(processes.BrokenWorkers, match=r"lower env\.workers"):
        pool.step([(0, "a")])


def test_an_environment_that_cannot_be_made_says_why(make_pool):
    with pytest.raises(ValueError, match="cannot be started: OSError: the disk is on fire"):
        make_pool(trouble="raise").reset(tasks(""))
    with pytest.raises(ValueError, match="its process died"):
        make_pool(trouble="die").reset(tasks(""))
    pool = EnvPool(lambda: None, PoolConfig(workers=1))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"cannot be sent to a worker .* a function of a module"):
        pool.reset(tasks(""))


def test_nothing_is_left_running(make_pool):
    pool = make_pool()
    pool.reset(tasks("", ""))
    pids = [*pool.pids, pool._players._fork_server._process.pid]
    assert all(alive(pid) for pid in pids)
    pool.close()
    pool.close()
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(alive(pid) for pid in pids)


OWN_MODULE = """
from atod_jax.envs.base import Observation, StepResult

class Echo:
    def reset(self, task):
        return Observation(task.payload)
    def step(self, command):
        return StepResult(Observation(command), 1.0, True, True)
    def close(self):
        pass
"""
PLAY_IN_A_WORKER = """
from atod_jax.envs.pool import EnvPool, PoolConfig
from atod_jax.records import Task
import echoes.shout
pool = EnvPool(echoes.shout.Echo, PoolConfig(workers=1))
print(pool.reset([Task("t", "k", "hello")])[0].text, pool.step([(0, "bye")])[0].observation.text)
pool.close()
"""


@pytest.fixture
def own_package(tmp_path) -> Path:
    """A folder with a user's own environment, a module of a package."""
    (tmp_path / "echoes").mkdir()
    (tmp_path / "echoes" / "shout.py").write_text(OWN_MODULE)
    return tmp_path


def test_workers_import_an_environment_from_where_the_main_process_does(own_package, monkeypatch):
    monkeypatch.syspath_prepend(own_package)
    make = importlib.import_module("echoes.shout").Echo
    pool = EnvPool(make, PoolConfig(workers=2))
    try:
        assert [o.text for o in pool.reset(tasks("a", "b"))] == ["a", "b"]
        assert texts(pool.step([(1, "c")])) == ["c"]
    finally:
        pool.close()


def test_workers_import_an_environment_from_the_current_directory(own_package):
    """With -c and in a shell that is "" in sys.path."""
    path = str(Path(processes.__file__).parents[2])
    run = subprocess.run(
        [sys.executable, "-c", PLAY_IN_A_WORKER],
        cwd=own_package,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.stdout.split(), run.stderr) == (["hello", "bye"], "")


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="workers=-1"):
        PoolConfig(workers=-1)
    with pytest.raises(ValueError, match=r"timeout=0\.0"):
        PoolConfig(timeout=0.0)
    with pytest.raises(ValueError, match="attempts=0: must be at least 1"):
        PoolConfig(attempts=0)
