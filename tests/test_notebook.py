"""The notebook is committed as it ran, and it and the script run on the shipped models."""

import base64
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

REPO = Path(__file__).resolve().parents[1]
FOLDER = REPO / "launch" / "notebooks"
NOTEBOOK = FOLDER / "quickstart.ipynb"
SHORT = {
    '"quickstart"': '"household:algo=atod,teacher=mid,smoke"',
    "c.total_steps, c.eval.every = 20, 5": "c.total_steps, c.eval.every = 2, 1",
    "256": "8",
}
PLACES = re.compile(r"/(tmp|home|root|Users|work|mnt|opt|usr|var)/|site-packages|ipykernel")


def code_cells():
    return [c for c in nbformat.read(NOTEBOOK, as_version=4).cells if c.cell_type == "code"]


def outputs(cells):
    """(kind, content) of all that the cells have put out."""
    for out in (out for cell in cells for out in cell.outputs):
        if out.output_type == "stream":
            yield out.name, out.text
        elif out.output_type == "error":
            yield "error", out.evalue
        else:
            yield from out.data.items()


def test_the_notebook_begins_with_five_lines_that_train():
    first = code_cells()[0].source
    lines = first.split("\n")
    assert len([line for line in lines if line]) <= 5
    assert lines[-1].startswith("train.main(")
    imported = re.findall(r"from (atod_jax\S*) import (.*)", first)
    assert imported == [("atod_jax", "config, train")]


def test_the_notebook_is_committed_as_it_ran():
    cells = code_cells()
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    found = list(outputs(cells))
    text = "\n".join(str(content) for kind, content in found if kind != "image/png")
    assert "| after - before " in text
    assert "error" not in dict(found)
    assert not PLACES.search(text)
    assert not re.search(r"\w+Warning|\x1b|\d+%\|", text)  # nor bars that were drawn
    assert NOTEBOOK.stat().st_size < 600_000


def test_the_notebook_ends_with_a_coloured_episode():
    last = code_cells()[-1]
    assert "draw_episode(" in last.source
    (picture,) = (content for kind, content in outputs([last]) if kind == "image/png")
    shown = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    colours = {colour for _, colour in shown.getcolors(shown.width * shown.height)}
    assert any(b - r > 60 for r, _, b in colours)
    assert any(r - b > 60 for r, _, b in colours)


def run_in(folder, changes, monkeypatch):
    """The notebook's text after it ran in another folder, its first cell changed."""
    fast = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    monkeypatch.setenv("XLA_FLAGS", fast if changes else "")  # one device, as a user has
    if changes:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    for old, new in changes.items():
        assert old in first.source
        first.source = first.source.replace(old, new)
    client = NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return "".join(str(content) for _, content in outputs(cells))


def test_the_notebook_runs(tmp_path, monkeypatch):
    """In a short form; a cell that fails ends it with its error."""
    text = run_in(tmp_path, SHORT, monkeypatch)
    assert "| % of 8 tasks solved " in text
    assert "step 2: " in text
    assert "\na cell of a notebook\n" in (tmp_path / "runs/notebook/report.md").read_text()
    # what the notebook works out is what training used, to the digits that transcripts keep
    parts = [line.split() for line in text.partition("distill")[2].splitlines()[1:3]]
    assert [float(x[3]) for x in parts] == pytest.approx(
        [float(x[4]) for x in parts], rel=1e-3, abs=2e-3
    )


@pytest.mark.slow
def test_the_whole_notebook_learns(tmp_path, monkeypatch):
    run_in(tmp_path, {}, monkeypatch)
    start, final = (
        json.loads((tmp_path / f"runs/notebook/evaluations/{name}-T1.json").read_text())["success"]
        for name in ("start", "final")
    )
    assert sum(final[0]) > sum(start[0]) + 0.3 * len(final[0])


def test_the_turn_table_of_the_paper_is_reproduced():
    """Weights 1.00, 1.00, 0.15, 0.00, 0.60 from d and h as printed, rounded inputs included."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, FOLDER / "tdur.py"],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    paper, recorded = done.stdout.split("\nYour task is to: ")
    weights = [float(line.split()[3]) for line in paper.strip().splitlines()[1:]]
    assert weights == pytest.approx([1.00, 1.00, 0.15, 0.00, 0.60], abs=0.01)
    turns = [line.split(maxsplit=4) for line in recorded.splitlines()[2:-1]]
    assert len(turns) > 1
    assert all(0 <= float(w) <= 1 for _, _, _, w, _ in turns)
