"""Train states on disk, by way of Orbax.

One folder per step holds the state (step, parameters, optimiser) and the resolved config as JSON.
What is frozen is never saved, since the config names it: the teacher, and the weights beside a
student's adapters. Steps appear atomically, so a run may be killed at any moment and started again
with the same command. Digests of the arrays lie beside them, and a step whose bits have changed on
the disk is never gone on from.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from atod_jax import cluster
from atod_jax.options.tree import flatten
from atod_jax.results.arrays import digests, not_finite
from atod_jax.texts import whole
from atod_jax.types import TrainState

# Orbax's names (0.12): the mark of a finished step, and the index of its arrays.
MARK, STAMP, INDEX = "_CHECKPOINT_METADATA", "commit_timestamp_nsecs", Path("state", "_METADATA")
SHAPING = ("student.", "optim.")  # options that say which arrays there are; named first
MEND = "put back a copy of that folder, or use another step"
UNREADABLE = frozenset("*?[]\\")  # Orbax would look for files that match; nor can it take bytes


class Damaged(ValueError):
    """What is on the disk is not what was saved."""


class Checkpointer:
    """The checkpoints of one run; saving happens in the background.

    Args:
      directory: the folder with one sub-folder per step; made when missing, unless `read_only`.
      keep: how many of the latest steps to keep; None keeps all.
      config: the resolved options, nested and JSON-compatible; saved with every step, and compared
        with the saved ones to explain why a step does not fit.
      read_only: touch nothing, so that the folder of a live run can be evaluated.

    Raises:
      FileNotFoundError: `read_only` and no such folder.
      ValueError: `directory` is a file or a URL.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        keep: int | None = None,
        config: Mapping[str, Any] | None = None,
        read_only: bool = False,
    ) -> None:
        self._directory = _checked(directory, must_exist=read_only)
        self._config, self._read_only = dict(config or {}), read_only
        if not read_only and cluster.is_first():
            _set_broken_aside(self._directory)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=not read_only,
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
        )
        handlers = {
            "state": ocp.StandardCheckpointHandler(),
            "config": ocp.JsonCheckpointHandler(),
            "digests": ocp.JsonCheckpointHandler(),
        }
        self._manager = ocp.CheckpointManager(
            self._directory, options=options, item_handlers=handlers
        )

    def save(self, step: int, state: TrainState) -> None:
        """Starts writing `state` as `step`; a step that is already there is left as it is.

        The arrays are copied before this returns, so the caller may donate them.
        """
        if step in self._manager.all_steps():
            return
        arrays = _as_dict(state)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays),
            config=ocp.args.JsonSave(self._config),
            digests=ocp.args.JsonSave(digests(arrays)),
        )
        with jax.transfer_guard("allow"):  # writing to disk is a transfer, and a wanted one
            self._manager.save(step, args=items, force=True)

    def steps(self) -> list[int]:
        """The steps on disk that are whole, in rising order; waits for the saves under way."""
        self.wait()
        return sorted(int(folder.name) for folder in _steps(self._directory) if _is_whole(folder))

    def latest_step(self) -> int | None:
        """The highest step that is whole, or None."""
        return max(self.steps(), default=None)

    def restore_latest(self, abstract_state: TrainState) -> TrainState | None:
        """The state of the latest whole step, or None when nothing was saved; see `restore`.

        A damaged step is told of and the one before it taken; unless `read_only`, it is renamed to
        `<step>.broken`.

        Raises:
          ValueError: every step is damaged; or see `restore`.
        """
        damaged: list[int] = []
        for step in reversed(self.steps()):
            state, problem = self._attempt(step, abstract_state)
            if state is not None:
                self._leave_out(damaged, instead=step)
                return state
            cluster.warn(problem)
            damaged.append(step)
        if damaged:
            raise ValueError(
                f"no step in {self._directory} can be restored; put a copy of it there, or delete "
                "the folder to begin again"
            )
        return None

    def _attempt(self, step: int, abstract_state: TrainState) -> tuple[TrainState | None, str]:
        """The state of a step, or what is damaged for any of the processes."""
        state, problem = None, ""
        try:
            state = self.restore(step, abstract_state)
        except Damaged as error:
            problem = str(error)
        problems = [said for said in cluster.gather([problem]) if said]
        return (None, problems[0]) if problems else (state, "")

    def _leave_out(self, damaged: list[int], *, instead: int) -> None:
        """Says which step takes the place of damaged ones, and frees their numbers."""
        found = _steps(self._directory)
        broken = [int(f.name) for f in found if int(f.name) > instead and not _is_whole(f)]
        if damaged or broken:
            cluster.warn(
                f"step {instead} takes the place of {max(damaged + broken)} in {self._directory}"
            )
        if cluster.is_first() and not self._read_only:
            for step in damaged:
                _set_aside(self._directory / str(step))

    def restore(self, step: int, abstract_state: TrainState) -> TrainState:
        """Reads one step straight into the shardings of `abstract_state`.

        Args:
          step: a step that was saved.
          abstract_state: the same tree of `jax.ShapeDtypeStruct`s (or arrays) with shardings, which
            may differ from those it was saved with. `frozen` is taken from it as it is.

        Raises:
          FileNotFoundError: there is no such step.
          Damaged: the files cannot be read, or their numbers are not those that were saved.
          ValueError: they belong to another model, or a sharding is missing.
        """
        target = jax.tree.map_with_path(_with_sharding, _as_dict(abstract_state))
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        with jax.transfer_guard("allow"):
            with self._readable(step):
                saved = self._manager.item_metadata(step)["state"].tree
            self._require_fit(step, saved, target)
            with self._readable(step):
                state = self._manager.restore(step, args=args)["state"]
                wrong = self._wrong(step, state)
        if wrong:
            raise Damaged(f"cannot restore {self._directory / str(step)}: {wrong}; {MEND}")
        return TrainState(**state, frozen=abstract_state.frozen)

    def saved_config(self, step: int) -> dict[str, Any]:
        """The config that was saved with `step`; raises like `restore`."""
        args = ocp.args.Composite(config=ocp.args.JsonRestore())
        with self._readable(step):
            return self._manager.restore(step, args=args)["config"]

    def wait(self) -> None:
        """Blocks until the saves under way are on disk; raises what went wrong with them."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then frees the background threads."""
        self.wait()
        self._manager.close()

    @contextlib.contextmanager
    def _readable(self, step: int) -> Iterator[None]:
        """Turns errors on reading `step` into one line that names the folder and the fix."""
        folder, steps = self._directory / str(step), self.steps()
        if step not in steps:
            raise FileNotFoundError(f"no whole step {step} in {self._directory}; it has {steps}")
        try:
            yield
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise Damaged(
                f"cannot restore {folder}: it cannot be read ({type(error).__name__}: {reason}); "
                f"{MEND}"
            ) from error

    def _wrong(self, step: int, state: Mapping[str, Any]) -> str:
        """What of a state that was read is not as a run saves it; "" for nothing. A step that was
        saved without digests has none to compare."""
        if (self._directory / str(step) / "digests").is_dir():
            args = ocp.args.Composite(digests=ocp.args.JsonRestore())
            saved, read = self._manager.restore(step, args=args)["digests"], digests(state)
            changed = sorted(name for name in read if saved.get(name) != read[name])
            if changed:
                return f"{len(changed)} of {len(read)} arrays are not as saved: {changed[0]}"
        found = not_finite(state["params"])
        return f"params/{found[0]} is not finite" if found else ""

    def _require_fit(self, step: int, saved: Any, target: Any) -> None:
        """Compares names and shapes before any array is read, to say which one differs and why."""
        misfit = _misfit(saved, target)
        if misfit:
            raise ValueError(
                f"cannot restore {self._directory / str(step)}: it belongs to another model or "
                f"optimiser: {misfit}. {self._other_options(step)}use the configuration of its "
                "run (run_config.json there; config/metadata in that folder)"
            )

    def _other_options(self, step: int) -> str:
        """The options that differ from the saved ones, or the saved ones, as far as known."""
        try:
            there = flatten(self.saved_config(step))
        except ValueError:
            return ""
        here = flatten(json.loads(json.dumps(self._config)))  # lists for tuples, as in the file
        if not here:
            shaping = [f"{k}={v!r}" for k, v in there.items() if k.startswith(SHAPING)]
            return f"It was saved with {', '.join(shaping[:8])}; " if shaping else ""
        paths = [k for k in there.keys() | here.keys() if there.get(k) != here.get(k)]
        paths.sort(key=lambda k: (not k.startswith(SHAPING), k))
        shown = ", ".join(f"{k} ({there.get(k)!r} there, {here.get(k)!r} here)" for k in paths[:5])
        return f"{len(paths)} options differ: {shown}; " if paths and there else ""


def _checked(directory: str | Path, *, must_exist: bool) -> Path:
    if "://" in str(directory):
        raise ValueError(f"{directory} is a URL; mount the bucket and give the path of the mount")
    path = Path(directory).absolute()
    require_readable(path)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; give the checkpoints a folder of their own")
    if must_exist and not path.is_dir():
        raise FileNotFoundError(f"no checkpoint folder {path}; give the workdir of a training run")
    return path


def require_readable(path: Path) -> None:
    """Refuses a place whose checkpoints could be written but not read.

    Raises:
      ValueError: with the character of its name that is the reason.
    """
    name = str(path.absolute())
    if found := sorted(x for x in set(name) if x in UNREADABLE or whole(x) != x):
        raise ValueError(
            f"{name}: checkpoints cannot be read back from a folder with {found[0]!r} in its path; "
            "give it another name"
        )


def _as_dict(state: TrainState) -> dict[str, Any]:
    """The state with names instead of a class, so that what is on disk outlives the class."""
    return {"step": state.step, "params": state.params, "opt_state": state.opt_state}


def _with_sharding(path: tuple, leaf: Any) -> jax.ShapeDtypeStruct:
    """The leaf's shape, type and sharding; without a sharding Orbax would use the saved devices."""
    if leaf.sharding is None:
        name = jax.tree_util.keystr(path)
        raise ValueError(f"{name} has no sharding; give the abstract state the shardings to use")
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _misfit(saved: Any, target: Any) -> str:
    """In what two trees of arrays differ; "" where they are alike."""
    there, here = _shapes(saved), _shapes(target)
    differing = [k for k in there.keys() | here.keys() if there.get(k) != here.get(k)]
    if not differing:
        return ""
    # Parameters first: the optimiser's arrays mirror them under less telling names.
    name = min(differing, key=lambda k: (not k.startswith("params"), k))
    return (
        f"{len(differing)} of {len(here)} arrays differ; the first, {name}, is "
        f"{there.get(name, 'absent')} on disk and {here.get(name, 'absent')} in this model"
    )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }


def _set_broken_aside(directory: Path) -> None:
    """Renames steps that are not whole (a half-finished copy or deletion) to `<step>.broken`.

    Left alone, such a step would pass for the latest one and keep its number from being saved.
    """
    for folder in _steps(directory):
        if not _is_whole(folder):
            cluster.warn(f"{folder} is not whole; it is left out, as {_set_aside(folder).name}")


def _set_aside(step: Path) -> Path:
    aside = step.with_name(f"{step.name}.broken")
    shutil.rmtree(aside, ignore_errors=True)
    return step.rename(aside)


def _steps(directory: Path) -> list[Path]:
    return [f for f in directory.glob("[0-9]*") if f.name.isdecimal() and f.is_dir()]


def _is_whole(folder: Path) -> bool:
    """True where Orbax's mark of a finished step and the state are there."""
    try:
        mark = json.loads((folder / MARK).read_text())
    except (OSError, ValueError):
        return False
    return bool(mark.get(STAMP)) and (folder / INDEX).is_file()
