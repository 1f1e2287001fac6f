"""What made a result: packages, configuration, commit, and what it took."""

import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on, for the settings table."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version()} | versions


def config_digest(config: Mapping[str, Any]) -> str:
    """Twelve hex digits that name a configuration, whatever the order of its keys."""
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def git_commit(folder: Path) -> str:
    """The commit of a clone, and whether files differ from it; "" where there is no clone."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # it may lie in somebody else's
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return git("rev-parse", "--short=12", "HEAD") + (", with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def took(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Time and speed of the training steps in the records of a run; nothing before the first."""
    steps = [record for record in records if "seconds/step" in record]
    seconds = sum(record["seconds/step"] or 0 for record in steps)
    if not seconds:
        return {}
    written = sum(
        (record.get("rollout/rows") or 0) * (record.get("rollout/action_tokens") or 0)
        for record in steps
    )
    return {
        "training steps took": f"{seconds / 60:.1f} min, {seconds / len(steps):.1f} s each",
        "action tokens learnt from": f"{written:,.0f}, {written / seconds:,.0f} per second",
    }
