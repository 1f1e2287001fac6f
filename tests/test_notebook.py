"""The notebook runs from top to bottom on the shipped models."""

import os
import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "launch" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")  # one device, as a user has
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit without outputs"
    began = time.monotonic()
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute(
        cwd=str(path.parent), env=dict(os.environ)
    )
    texts = [o.get("text", "") for c in notebook.cells for o in c.get("outputs", [])]
    assert any("step 7: success" in text for text in texts)
    assert any("after:" in text for text in texts)
    print(f"{path.name}: {time.monotonic() - began:.0f} s")
