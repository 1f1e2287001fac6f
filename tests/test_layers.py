"""The shape of the package: who may import whom, how long things are, what is explained.

The layers are what make the parts testable alone: the mathematics without a device, the
environments without a model, the rollout without a sampler.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from atod_jax.config import plugin_names

REPO = Path(__file__).resolve().parents[1]
FILES = sorted(p.relative_to(REPO) for p in (REPO / "atod_jax").rglob("*.py"))
CONFIGS = sorted(p.relative_to(REPO) for p in (REPO / "configs").rglob("*.py"))
SOURCES = {path: (REPO / path).read_text(encoding="utf-8") for path in FILES + CONFIGS}
TREES = {path: ast.parse(source) for path, source in SOURCES.items()}

PURE = {"jax", "numpy", "jaxtyping", "flax.struct"}
# Who may import which part of the package; a folder's files may always import each other.
ALLOWED = {
    "types": set(),
    "records": set(),
    "core": {"types"},
    "algorithms": {"types", "records", "core"},
    "models": {"types", "sharding"},
    "envs": {"records"},
    "render": {"envs"},
    "packing": {"types", "records"},
    "rollout": {"records", "envs", "render"},
    "tasks": {"records", "envs", "streams"},
    "recording": {"records"},
    "intervals": set(),
    "metrics": {"types", "records"},
    "report": {"intervals"},
    "checkpoint": {"types", "sharding"},
    "optim": {"types"},
    "sharding": {"types"},
    "streams": {"types"},
    "cluster": set(),
}
# Only the command-line programs and what wires them up see the config tree.
READS_CONFIG = {
    "config", "cli", "assembly", "evaluation", "experience", "observer", "train", "evaluate",
    "play", "doctor", "replay", "export", "dry_run", "measures", "layouts",
}  # fmt: skip
PROGRAMS = {"train", "evaluate", "play", "doctor", "replay", "export"}
LONGEST_FILE, LONGEST_FUNCTION, LONGEST_MAIN = 350, 80, 120


def part_of(path: Path) -> str:
    """The file's name below the package, or the folder it is in: `core`, `envs`, `rollout`, ..."""
    return path.parts[1].removesuffix(".py")


def imports_of(path: Path, *, top_level: bool = False) -> set[str]:
    """Full dotted names imported by a file, `from a import b` as `a.b`."""
    nodes = TREES[path].body if top_level else ast.walk(TREES[path])
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write imports in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def parts_imported(path: Path) -> set[str]:
    own = (name.split(".") for name in imports_of(path))
    return {name[1] for name in own if name[0] == "atod_jax" and len(name) > 1} - {"__version__"}


def is_within(name: str, modules: set[str]) -> bool:
    return any(name == module or name.startswith(module + ".") for module in modules)


def definitions(path: Path) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_part_imports_only_what_lies_below_it(path):
    part = part_of(path)
    if part in ALLOWED:
        assert parts_imported(path) - {part} <= ALLOWED[part]
    if part not in PROGRAMS:
        assert not parts_imported(path) & PROGRAMS


@pytest.mark.parametrize("part", ["types", "core", "algorithms"])
def test_the_mathematics_knows_arrays_only(part):
    for path in (p for p in FILES if part_of(p) == part):
        outside = {
            name
            for name in imports_of(path)
            if not is_within(name, PURE | {"atod_jax"})
            and name.split(".")[0] not in sys.stdlib_module_names
            and not (part == "types" and name == "flax.struct")
        }
        assert not outside, f"{path} imports {outside}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_libraries_stay_where_they_belong(path):
    part, names = part_of(path), imports_of(path)
    if part != "models":
        assert not {name for name in names if is_within(name, {"flax.linen"})}
    if part == "envs":
        assert not {name for name in names if is_within(name, {"jax", "flax", "optax"})}
    if part not in READS_CONFIG:
        assert not {name for name in names if is_within(name, {"ml_collections"})}
    heavy = {"torch", "tensorflow", "textworld", "alfworld"}
    assert not {name for name in imports_of(path, top_level=True) if is_within(name, heavy)}
    assert "__future__.annotations" not in names


def test_environments_start_without_jax():
    """Their workers are forked, which JAX's threads do not survive."""
    names = [f"atod_jax.envs.{name}" for name in (*plugin_names("envs"), "worker")]
    makes = "; ".join(f"import {name}; {name}.make({name}.Config()).close()" for name in names[:-1])
    code = f"import sys, {names[-1]}; {makes}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO).returncode == 0


@pytest.mark.parametrize("path", FILES + CONFIGS, ids=str)
def test_files_and_functions_stay_short(path):
    assert len(SOURCES[path].splitlines()) <= LONGEST_FILE
    for node in definitions(path):
        if isinstance(node, ast.ClassDef):
            continue
        is_loop = path.name == "train.py" and node.name == "main"
        limit = LONGEST_MAIN if is_loop else LONGEST_FUNCTION
        length = node.end_lineno - node.lineno + 1
        assert length <= limit, f"{path}:{node.lineno}: {node.name} has {length} lines"


def is_stub(node: ast.FunctionDef) -> bool:
    """A one-statement body, such as a Protocol's `...` or a property: its name says it all."""
    return len(node.body) == 1


def undocumented(tree: ast.Module, prefix: str = "") -> Iterator[str]:
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        is_member = bool(prefix)
        if ast.get_docstring(node) is None and not (
            is_member and isinstance(node, ast.FunctionDef) and is_stub(node)
        ):
            yield f"{prefix}{node.name} (line {node.lineno})"
        if isinstance(node, ast.ClassDef):
            yield from undocumented(node, f"{node.name}.")


@pytest.mark.parametrize("path", FILES + CONFIGS, ids=str)
def test_what_is_public_is_explained(path):
    if SOURCES[path].strip():
        assert ast.get_docstring(TREES[path]), f"{path} has no docstring"
    assert list(undocumented(TREES[path])) == []


def test_the_rules_see_a_breach():
    """The checks above look at real files only; here they are shown something to object to."""
    source = "def a(): pass\nclass B:\n    def c(self):\n        d = 1\n        return d\n"
    assert list(undocumented(ast.parse(source))) == ["a (line 1)", "B (line 2)", "B.c (line 3)"]
    assert is_within("flax.linen.Module", {"flax.linen"})
    assert not is_within("flax.linen_more", {"flax.linen"})
    path = Path("atod_jax/core/x.py")
    TREES[path] = ast.parse("from atod_jax import learner\nfrom atod_jax.types import Mean\n")
    try:
        assert parts_imported(path) == {"learner", "types"}
    finally:
        del TREES[path]
