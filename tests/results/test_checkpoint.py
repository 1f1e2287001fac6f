"""Checkpoints: what is restored equals what was saved, wherever it is put; halves are ignored."""

import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from atod_jax.results.checkpoint import Checkpointer
from atod_jax.types import TrainState

TX = optax.adamw(1e-2)
REPO = Path(__file__).resolve().parents[2]
CONFIG = {"optim": {"lr": 1e-2}, "kinds": ["a", "b"], "limit": None}


def make_state(step: int, *, width: int = 16) -> TrainState:
    """A state whose every leaf depends on `step`, after one optimiser update."""
    key = jax.random.key(step)
    params = {
        "embed": jax.random.normal(key, (8, width)),
        "norm": jnp.full((width,), step, jnp.bfloat16),
    }
    grads = jax.tree.map(lambda p: p * 0.5, params)
    updates, opt_state = TX.update(grads, TX.init(params), params)
    params = optax.apply_updates(params, updates)
    return TrainState(step=jnp.int32(step), params=params, opt_state=opt_state)


def assert_same(first: TrainState, second: TrainState) -> None:
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_latest_state_comes_back_bit_for_bit(tmp_path):
    checkpoints = Checkpointer(tmp_path / "new" / "folder", config=CONFIG)
    assert checkpoints.restore_latest(make_state(0)) is None
    for step in (2, 4):
        checkpoints.save(step, make_state(step))
    checkpoints.close()

    again = Checkpointer(tmp_path / "new" / "folder")
    assert again.latest_step() == 4
    assert_same(again.restore_latest(make_state(0)), make_state(4))
    assert_same(again.restore(2, make_state(0)), make_state(2))
    assert again.saved_config(4) == CONFIG
    again.close()


def test_only_the_latest_steps_are_kept(tmp_path):
    checkpoints = Checkpointer(tmp_path, keep=2)
    for step in range(4):
        checkpoints.save(step, make_state(step))
    checkpoints.wait()
    assert checkpoints.steps() == [2, 3]
    checkpoints.close()


def test_a_saved_step_is_not_written_twice(tmp_path):
    checkpoints = Checkpointer(tmp_path)
    checkpoints.save(1, make_state(1))
    checkpoints.save(1, make_state(5))
    assert_same(checkpoints.restore(1, make_state(0)), make_state(1))
    checkpoints.close()


def test_buffers_may_be_donated_while_the_save_is_under_way(tmp_path):
    @partial(jax.jit, donate_argnums=0)
    def overwrite(params):
        return jax.tree.map(lambda p: p * 0 - 1, params)

    state = make_state(3, width=1 << 18)
    expected = [np.array(leaf, copy=True) for leaf in jax.tree.leaves(state)]
    checkpoints = Checkpointer(tmp_path)
    checkpoints.save(3, state)
    jax.block_until_ready(overwrite((state.params, state.opt_state)))
    restored = jax.tree.leaves(checkpoints.restore(3, make_state(0, width=1 << 18)))
    for leaf, want in zip(restored, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(leaf), want)
    checkpoints.close()


def test_a_save_under_way_is_waited_for(tmp_path):
    width = 1 << 20  # takes longer to write than the call takes to return
    checkpoints = Checkpointer(tmp_path)
    checkpoints.save(3, make_state(3, width=width))
    restored = checkpoints.restore_latest(make_state(0, width=width))
    assert_same(restored, make_state(3, width=width))
    checkpoints.close()


@pytest.mark.parametrize("spec", [PartitionSpec(), PartitionSpec("data")])
def test_restores_onto_eight_devices_what_one_device_saved(tmp_path, spec):
    state = make_state(7)
    checkpoints = Checkpointer(tmp_path)
    checkpoints.save(7, state)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def put(x):
        return jax.device_put(x * 0, NamedSharding(mesh, spec if x.ndim else PartitionSpec()))

    target = jax.tree.map(put, make_state(0))
    restored = checkpoints.restore_latest(target)
    assert_same(restored, state)
    for leaf, want in zip(jax.tree.leaves(restored), jax.tree.leaves(target), strict=True):
        assert leaf.sharding == want.sharding
        assert len(leaf.sharding.device_set) == 8
    checkpoints.close()


@pytest.mark.parametrize("lost", ["_CHECKPOINT_METADATA", "state"])
def test_a_half_copied_step_is_ignored_and_can_be_saved_again(tmp_path, lost):
    checkpoints = Checkpointer(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, make_state(step))
    checkpoints.close()
    broken = tmp_path / "2" / lost
    shutil.rmtree(broken) if broken.is_dir() else broken.unlink()

    reader = Checkpointer(tmp_path, read_only=True)
    assert reader.steps() == [1]
    assert (tmp_path / "2").is_dir()
    reader.close()

    writer = Checkpointer(tmp_path)
    assert_same(writer.restore_latest(make_state(0)), make_state(1))
    writer.save(2, make_state(2))
    writer.wait()
    assert writer.steps() == [1, 2]
    assert (tmp_path / "2.broken").is_dir()
    writer.close()


def test_a_step_of_a_killed_save_is_ignored_and_saved_again(tmp_path):
    checkpoints = Checkpointer(tmp_path)
    checkpoints.save(1, make_state(1))
    checkpoints.close()
    shutil.copytree(tmp_path / "1", tmp_path / "2.orbax-checkpoint-tmp")

    reader = Checkpointer(tmp_path, read_only=True)
    assert reader.latest_step() == 1
    assert (tmp_path / "2.orbax-checkpoint-tmp").is_dir()
    reader.close()
    writer = Checkpointer(tmp_path)
    assert writer.latest_step() == 1
    writer.save(2, make_state(2))
    assert_same(writer.restore(2, make_state(0)), make_state(2))
    writer.close()
    assert sorted(f.name for f in tmp_path.iterdir()) == ["1", "2"]


KILLED_RUN = """
import sys
sys.path[:0] = sys.argv[2:]
import jax, jax.numpy as jnp
from atod_jax.results.checkpoint import Checkpointer
from atod_jax.types import TrainState
checkpoints = Checkpointer(sys.argv[1], keep=2)
for step in range(10**6):
    params = jnp.full((1000, 1000), step, jnp.float32)
    checkpoints.save(step, TrainState(step=jnp.int32(step), params=params, opt_state=()))
    checkpoints.wait()
"""


@pytest.mark.slow
def test_a_run_killed_in_mid_save_restores_a_consistent_step(tmp_path):
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        child = subprocess.Popen([sys.executable, "-c", KILLED_RUN, str(folder), str(REPO)])
        deadline = time.monotonic() + 60
        while len([*folder.glob("[0-9]")]) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.003 * attempt)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        checkpoints = Checkpointer(folder, keep=2)
        abstract = TrainState(step=jnp.int32(0), params=jnp.zeros((1000, 1000)), opt_state=())
        state = checkpoints.restore_latest(abstract)
        assert int(state.step) == checkpoints.latest_step() >= 1
        np.testing.assert_array_equal(np.asarray(state.params), float(state.step))
        checkpoints.close()


def test_errors_name_the_folder_and_the_fix(tmp_path):
    missing = tmp_path / "missing"
    with pytest.raises(FileNotFoundError, match=f"no checkpoint folder {missing}; give"):
        Checkpointer(missing, read_only=True)
    assert not missing.exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file is a file; give the checkpoints a folder"):
        Checkpointer(tmp_path / "file")
    with pytest.raises(ValueError, match="is a URL; mount the bucket"):
        Checkpointer("gs://bucket/run")

    checkpoints = Checkpointer(tmp_path / "run")
    checkpoints.save(5, make_state(5))
    checkpoints.wait()
    with pytest.raises(FileNotFoundError, match=r"no whole step 9 in .*run; it has \[5\]"):
        checkpoints.restore(9, make_state(0))
    with pytest.raises(ValueError, match=r"cannot restore .*run/5: it belongs to an") as caught:
        checkpoints.restore(5, make_state(0, width=4))
    assert "\n" not in str(caught.value)
    assert "delete" not in str(caught.value)
    assert "use the configuration of its run" in str(caught.value)
    assert "params/embed, is (8, 16) on disk and (8, 4) in this model" in str(caught.value)
    with pytest.raises(ValueError, match=r"params/embed, is \(8, 16\) on disk and absent in this"):
        checkpoints.restore(5, make_state(0).replace(params={"head": jnp.zeros(8)}))
    shapes = jax.eval_shape(lambda: make_state(0).params)
    with pytest.raises(ValueError, match=r"\['params'\]\['embed'\] has no sharding; give the"):
        checkpoints.restore(5, make_state(0).replace(params=shapes))
    checkpoints.close()


def test_a_state_of_another_run_is_explained_by_its_options(tmp_path):
    theirs = {"student": {"path": "small"}, "seed": 0, "optim": {"lr": 1e-2, "betas": [0.9, 0.95]}}
    writer = Checkpointer(tmp_path, config=theirs)
    writer.save(5, make_state(5))
    writer.close()
    ours = theirs | {"student": {"path": "large"}, "seed": 1}
    ours["optim"] = {"lr": 1e-2, "betas": (0.9, 0.95)}
    for config, said in (
        (ours, "2 options differ: student.path ('small' there, 'large' here), seed (0 there, 1"),
        (theirs, "in this model. use the configuration of its run"),
        (None, "It was saved with student.path='small', optim.lr=0.01, optim.betas=[0.9, 0.95]; "),
    ):
        reader = Checkpointer(tmp_path, config=config, read_only=True)
        with pytest.raises(ValueError, match="it belongs to another model") as caught:
            reader.restore(5, make_state(0, width=4))
        assert said in str(caught.value)
        assert (tmp_path / "5" / "config" / "metadata").is_file()  # as the error says
        reader.close()


def test_frozen_weights_are_not_saved_but_taken_from_the_target(tmp_path):
    frozen = {"base": jnp.arange(4.0)}
    checkpoints = Checkpointer(tmp_path)
    checkpoints.save(1, make_state(1).replace(frozen=frozen))
    with_other = checkpoints.restore(1, make_state(0).replace(frozen={"base": jnp.ones(2)}))
    assert_same(with_other, make_state(1).replace(frozen={"base": jnp.ones(2)}))
    assert_same(checkpoints.restore(1, make_state(0)), make_state(1))
    checkpoints.close()


def test_a_finished_step_bears_the_marks_of_orbax_that_are_looked_for(tmp_path):
    """They are Orbax's own names, not promised to anybody; these are those of 0.12.8."""
    checkpoints = Checkpointer(tmp_path)
    checkpoints.save(1, make_state(1))
    checkpoints.close()
    installed = importlib.metadata.version("orbax-checkpoint")
    hint = f"orbax-checkpoint {installed} names its files otherwise; see checkpoint._is_whole"
    mark = tmp_path / "1" / "_CHECKPOINT_METADATA"
    assert mark.is_file(), hint
    assert json.loads(mark.read_text())["commit_timestamp_nsecs"] > 0, hint
    assert (tmp_path / "1" / "state" / "_METADATA").is_file(), hint


FLIP_BITS = """
import shutil, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
import jax, jax.numpy as jnp, numpy as np
from atod_jax.results.checkpoint import Checkpointer
from atod_jax.types import TrainState
def make(step):
    w = jax.random.normal(jax.random.key(step), (64, 64))
    params = {"w": w, "b": jnp.ones(7, jnp.bfloat16)}
    return TrainState(step=jnp.int32(step), params=params, opt_state=(jnp.arange(9),))
kept, copy, rng = Path(sys.argv[1], "kept"), Path(sys.argv[1], "copy"), np.random.default_rng(0)
with_both = Checkpointer(kept)
for step in (4, 5):
    with_both.save(step, make(step))
with_both.close()
for file in sorted(f.relative_to(kept) for f in (kept / "5").rglob("*") if f.is_file()):
    for _ in range(3):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(kept, copy)
        data = bytearray((copy / file).read_bytes())
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        (copy / file).write_bytes(data)
        print("-", file, file=sys.stderr)
        checkpoints = Checkpointer(copy)
        state = checkpoints.restore_latest(make(0))
        step = int(state.step)
        same = jax.tree.map(lambda a, b: bool((a == b).all()), state, make(step))
        print(file, step, all(jax.tree.leaves(same)), (copy / "5.broken").exists())
"""


def test_a_flipped_bit_is_never_gone_on_from(tmp_path):
    """Wherever it is: the step as it was saved, or the one before it, and then that is said."""
    command = [sys.executable, "-c", FLIP_BITS, str(tmp_path), str(REPO)]
    child = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    cases = [line.split() for line in child.stdout.splitlines()]
    said = child.stderr.split("- ")[1:]
    assert len(cases) == len(said) > 30
    in_arrays = 0
    for (file, step, same, aside), words in zip(cases, said, strict=True):
        assert (same, step == "4") == ("True", aside == "True"), file
        fallback = "step 4 takes the place of 5" in words or "left out, as 5.broken" in words
        assert fallback == (step == "4"), words
        in_arrays += "arrays are not as saved" in words
    assert in_arrays >= 3


def test_without_a_step_that_can_be_read_there_is_no_silent_new_beginning(tmp_path, capsys):
    checkpoints = Checkpointer(tmp_path)
    checkpoints.save(1, make_state(1))
    checkpoints.wait()
    digests = tmp_path / "1" / "digests" / "metadata"
    digests.write_text(json.dumps(dict.fromkeys(json.loads(digests.read_text()), "0" * 16)))
    with pytest.raises(ValueError, match=r"no step in .* can be restored; put a copy of it there"):
        checkpoints.restore_latest(make_state(0))
    assert "8 of 8 arrays are not as saved: opt_state/0/count" in capsys.readouterr().err
    assert (tmp_path / "1").is_dir()
    shutil.rmtree(tmp_path / "1" / "digests")  # saved before there were any
    assert_same(checkpoints.restore_latest(make_state(0)), make_state(1))
    checkpoints.close()


@pytest.mark.parametrize("name", ["a[1]", "b*", "c?", "d\\e", "f\udcff"])
def test_a_folder_that_could_not_be_read_back_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"checkpoints cannot be read back from a folder with"):
        Checkpointer(tmp_path / name / "checkpoints")
    assert not (tmp_path / name).exists()


READ_DAMAGED = """
import sys
sys.path[:0] = sys.argv[2:]
import jax.numpy as jnp
from atod_jax.results.checkpoint import Checkpointer
from atod_jax.types import TrainState
state = TrainState(step=jnp.int32(5), params=jnp.ones((64, 64)), opt_state=())
checkpoints = Checkpointer(sys.argv[1])
checkpoints.save(5, state)
checkpoints.wait()
for name in ("d/*", "_METADATA"):
    for data in (checkpoints._directory / "5" / "state").glob(name):
        data.write_bytes(data.read_bytes()[:10])
    try:
        checkpoints.restore(5, state)
    except ValueError as error:
        print(error)
"""


def test_damaged_files_give_one_clear_line(tmp_path):
    # A process of its own: Orbax's reads fail in the background after the first has failed.
    command = [sys.executable, "-c", READ_DAMAGED, str(tmp_path), str(REPO)]
    child = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    lines = child.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith(f"cannot restore {tmp_path}/5: it cannot be read (")
        assert "put back a copy of that folder" in line
