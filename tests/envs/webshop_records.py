"""Reading the recorded WebShop runs, for the tests beside this file."""

import gzip
import json
from pathlib import Path
from typing import Any


def rows(folder: Path, stem: str) -> list[dict[str, Any]]:
    """The rows of the one .jsonl.gz file whose name starts with `stem`."""
    (path,) = folder.glob(f"{stem}*.jsonl.gz")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def document(folder: Path, stem: str) -> Any:
    """The content of the one .json.gz file whose name starts with `stem`."""
    (path,) = folder.glob(f"{stem}*.json.gz")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)
