"""What the documents say exists: options by their paths, examples that run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from atod_jax import config

REPO = Path(__file__).resolve().parents[1]
PAGES = [
    *sorted(REPO.glob("*.md")), *sorted((REPO / "atod_jax").rglob("guides/*.md")),
    *sorted((REPO / "atod_jax").glob("*.md")),
    *sorted((REPO / "launch").glob("*.*")), *sorted((REPO / "configs").glob("*.py")),
    *sorted((REPO / "atod_jax" / "assets").rglob("README.md")),
]  # fmt: skip
OF_EXAMPLES = {"algorithm.clipped.bound", "section.key", "a.b"}


@pytest.mark.parametrize(
    "page", [p for p in PAGES if p.name != "CHANGELOG.md"], ids=lambda p: p.name
)
def test_every_option_that_is_named_exists(page):
    named = set(re.findall(r"--config\.([a-z_0-9]+(?:\.[a-z_0-9]+)*)=", page.read_text()))
    assert named - config.catalogue().keys() - OF_EXAMPLES == set()


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


@pytest.mark.slow
def test_the_examples_of_the_readme_train(tmp_path):
    page = (REPO / "README.md").read_text()
    for source in blocks(page):
        path = tmp_path / re.match(r"# (\S+\.py):", source)[1]
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
    commands = re.findall(
        r"^    python -m (atod_jax (?:train|play) .*my_package.*)$", page, re.MULTILINE
    )
    assert len(commands) == 3
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", *command.split()],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(REPO), "XLA_FLAGS": ""},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def test_every_metric_stands_in_the_glossary():
    """Names are written out in the code, but for those of phases and task types."""
    table = (REPO / "atod_jax" / "METHOD.md").read_text(encoding="utf-8").partition("| metric |")[2]
    rows = [row.split(" | ") for row in table.partition("\n\n")[0].splitlines()[2:]]
    assert {len(row) for row in rows} == {4}
    explained = [name for row in rows for name in re.findall(r"`([a-z]+/[A-Za-z_/]+)`", row[0])]
    assert len(explained) == len(set(explained))
    groups = sorted({name.partition("/")[0] for name in explained})
    name = re.compile(rf"""["']((?:{"|".join(groups)})/[a-z_]+)["']""")
    sources = [path.read_text(encoding="utf-8") for path in (REPO / "atod_jax").rglob("*.py")]
    logged = {found for source in sources for found in name.findall(source)}
    logged |= {f"seconds/{n}" for s in sources for n in re.findall(r"""clock.lap\("(.*)"\)""", s)}
    logged.add("eval/success/KIND")
    assert sorted(logged) == sorted(explained)


def test_the_code_of_the_guide_to_a_run_reads_one(tmp_path):
    """On an episode as `train` writes it."""
    turn = {"d": 1.0, "pieces": ["go", " on"], "streams": {"advantage": [0.5, -0.25]}}
    path = tmp_path / "runs" / "a" / "transcripts" / "000000-train.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"turns": [turn, turn | {"d": 0.5}]}) + "\n")
    page = (REPO / "atod_jax" / "guides" / "reading_a_run.md").read_text(encoding="utf-8")
    (source,) = blocks(page)
    run = subprocess.run(
        [sys.executable, "-c", source], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert run.stdout == "+0.500 'go'\n-0.250 ' on'\n"
