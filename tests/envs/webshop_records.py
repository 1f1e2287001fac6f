"""Reading the recorded WebShop runs, for the tests beside this file."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest


def rows(folder: Path, stem: str) -> list[dict[str, Any]]:
    """The rows of the one .jsonl.gz file whose name starts with `stem`; skips without one."""
    with gzip.open(_the_file(folder, f"{stem}*.jsonl.gz"), "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def document(folder: Path, stem: str) -> Any:
    """The content of the one .json.gz file whose name starts with `stem`; skips without one."""
    with gzip.open(_the_file(folder, f"{stem}*.json.gz"), "rt", encoding="utf-8") as file:
        return json.load(file)


def _the_file(folder: Path, pattern: str) -> Path:
    found = list(folder.glob(pattern))
    if not found:
        pytest.skip(f"no {pattern} among the recordings in {folder}")
    (path,) = found
    return path
