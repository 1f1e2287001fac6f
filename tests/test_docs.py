"""What the documents say exists: options by their paths, examples that run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from atod_jax import config

REPO = Path(__file__).resolve().parents[1]
PAGES = [
    *sorted(REPO.glob("*.md")), *sorted((REPO / "atod_jax").glob("*.md")),
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
