"""Evaluations at the start and of the teacher that another run from the same models has made."""

from pathlib import Path

from atod_jax.config import Run, defining
from atod_jax.results.files import write_bytes
from atod_jax.run.models import local_path
from atod_jax.run.workdir import differences, read_definition

ROLES = ("start", "teacher")
# what these evaluations depend on
SHARED = ("seed", "student.", "env.", "sampling.", "eval.split", "eval.final_tasks", "eval.passes",
          "eval.temperatures")  # fmt: skip


def require_known(cfg: Run) -> None:
    """Checks that `eval.known` holds a run whose first evaluations are those of this one.

    Raises:
      ValueError: it holds no run, or its evaluations are of other models, tasks or draws.
    """
    if not cfg.eval.known:
        return
    try:
        there, here = read_definition(Path(cfg.eval.known)), defining(cfg)
    except FileNotFoundError:
        raise ValueError(
            f"eval.known={cfg.eval.known} holds no run; name the --workdir of one"
        ) from None
    both = there.get("teacher.path") and here.get("teacher.path")
    paths = (*SHARED, "teacher.") if both else SHARED
    found = differences(*({p: v for p, v in side.items() if p.startswith(paths)}
                          for side in (there, here)))  # fmt: skip
    if found:
        path, (old, new) = next(iter(found.items()))
        raise ValueError(
            f"eval.known={cfg.eval.known}: its evaluations are of {path}={old}, this run has {new};"
            " leave eval.known out"
        )


def take_known(cfg: Run, role: str, path: Path) -> bool:
    """Copies an evaluation, with its episodes, to `path`; False where it must be played.

    One that is older than the weights of its model, wherever these came from, may be of other
    weights, and is not taken.
    """
    if not cfg.eval.known or role not in ROLES:
        return False
    source = Path(cfg.eval.known, "evaluations", path.name)
    folder = local_path(cfg.student.path if role == "start" else cfg.teacher.path, "config.json")
    weights = folder.glob("*.safetensors") if folder else ()
    # of the change in the folder too: a copy may keep the time of its original
    there = [max(file.stat().st_mtime, file.stat().st_ctime) for file in weights]
    suffixes = (".jsonl.gz", ".json")  # the result last: it says that all is there
    if not all(source.with_suffix(suffix).is_file() for suffix in suffixes):
        return False
    if source.stat().st_mtime < max(there, default=0.0):
        return False
    for suffix in suffixes:
        write_bytes(path.with_suffix(suffix), source.with_suffix(suffix).read_bytes())
    return True
