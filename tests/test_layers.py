"""The shape of the package: who may import whom, how long things are, what is explained.

The layers are what make the parts testable alone: the mathematics without a device, the
environments without a model, the rollout without a sampler.
"""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from atod_jax.__main__ import PROGRAMS
from atod_jax.options import plugins
from atod_jax.options.plugins import ENVIRONMENTS

REPO = Path(__file__).resolve().parents[1]
FILES = sorted(p.relative_to(REPO) for p in (REPO / "atod_jax").rglob("*.py"))
CONFIGS = sorted(p.relative_to(REPO) for p in (REPO / "configs").rglob("*.py"))
SOURCES = {path: (REPO / path).read_text(encoding="utf-8") for path in FILES + CONFIGS}
TREES = {path: ast.parse(source) for path, source in SOURCES.items()}

# A part is a module or a folder of the package. It may import parts of its own floor or below.
FLOORS = (
    {"__init__", "options", "types", "records", "streams", "texts", "sums", "cluster", "sharding"},
    {"core", "algorithms", "models", "envs"},
    {"device", "episodes"},
    {"results"},
    {"config"},
    {"run"},
    {"estimate", "studies"},
    {"__main__", *PROGRAMS},
)
# What each part imports, no more and no less; the files of a folder may always import each other.
ALLOWED: dict[str, set[str]] = {
    "__init__": set(),
    "options": set(),
    "types": set(),
    "records": set(),
    "streams": set(),
    "texts": set(),
    "sums": set(),
    "cluster": set(),
    "sharding": {"options", "types"},
    "core": {"options", "types"},
    "algorithms": {"core", "options", "records", "types"},
    "models": {"sharding", "sums", "texts", "types"},
    "envs": {"options", "records", "sums", "texts"},
    "device": {"core", "models", "options", "records", "sharding", "types"},
    "episodes": {"cluster", "envs", "options", "records", "streams", "texts", "types"},
    "results": {"cluster", "options", "records", "texts", "types"},
    "config": {
        "algorithms", "core", "device", "envs", "episodes", "options", "results", "sharding",
    },
    "run": {
        "algorithms", "cluster", "config", "core", "device", "envs", "episodes", "models",
        "options", "records", "results", "sharding", "streams", "texts", "types",
    },
    "estimate": {
        "config", "core", "device", "episodes", "models", "records", "results", "run", "sharding",
        "types",
    },
    "studies": {"options", "results", "texts"},
    "__main__": {"run"},
    "train": {"cluster", "config", "envs", "estimate", "results", "run"},
    "evaluate": {"cluster", "config", "options", "results", "run"},
    "compare": {"results", "run"},
    "view": {"results", "run"},
    "signals": {"algorithms", "config", "core", "records", "results", "run"},
    "study": {"config", "results", "run", "studies"},
    "play": {"config", "envs", "records", "results", "run", "streams", "texts"},
    "replay": {
        "algorithms", "config", "device", "episodes", "records", "results", "run", "types",
    },
    "export": {"config", "models", "run"},
    "bench": {"estimate", "models", "results", "run", "sharding"},
    "doctor": {"config", "envs", "options", "records", "results", "run", "train"},
}  # fmt: skip
RUNS_WHOLE = {"doctor": {"train"}}  # programs that start another one

PURE = {"jax", "numpy", "jaxtyping", "flax.struct"}
# Where a ConfigDict may be seen; everything else gets typed options.
READS_CONFIG = {
    "atod_jax/config/",
    "atod_jax/run/cli.py",
    "atod_jax/run/option_text.py",
    "atod_jax/run/checkpoints.py",
    "atod_jax/play.py",
}
LONGEST_FILE, LONGEST_FUNCTION, MOST_TOP_MODULES = 350, 80, 19

# Public functions that take more than three arguments by position, and why they may.
POSITIONAL = {
    "envs.webshop.reward.score": "the tests of recorded WebShop episodes call it so",
    "models.transformer.hidden_states": "LanguageModel.hidden, once the model's sizes are given",
    "models.serving.prefill": "LanguageModel.prefill, likewise",
    "models.serving.step": "LanguageModel.step, likewise",
}


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


def test_every_part_has_its_row_and_its_floor():
    parts = sorted({part_of(path) for path in FILES})
    assert sorted(ALLOWED) == parts
    assert sorted(part for floor in FLOORS for part in floor) == parts


@pytest.mark.parametrize("part", ALLOWED)
def test_a_part_imports_what_its_row_says(part):
    found = set().union(*(parts_imported(p) for p in FILES if part_of(p) == part)) - {part}
    assert found - ALLOWED[part] == set(), f"{part} imports more than its row allows"
    assert ALLOWED[part] - found == set(), f"the row of {part} allows what it does not import"


def climbs(rows: dict[str, set[str]]) -> list[str]:
    """The rows that point to a higher floor."""
    height = {part: number for number, floor in enumerate(FLOORS) for part in floor}
    return [f"{a} -> {b}" for a, row in rows.items() for b in row if height[b] > height[a]]


def test_no_row_points_upward():
    assert climbs(ALLOWED) == []


def test_no_parts_import_each_other_in_a_circle():
    graphlib.TopologicalSorter(ALLOWED).prepare()  # raises a CycleError that names them


@pytest.mark.parametrize("part", ALLOWED)
def test_programs_are_ends(part):
    assert ALLOWED[part] & {"__main__", *PROGRAMS} == RUNS_WHOLE.get(part, set())


def test_the_top_of_the_package_is_short():
    modules = [path for path in FILES if len(path.parts) == 2 and path.name != "__init__.py"]
    assert len(modules) <= MOST_TOP_MODULES


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
    if not str(path).startswith(tuple(READS_CONFIG)):
        assert not {name for name in names if is_within(name, {"ml_collections"})}
    heavy = {"torch", "tensorflow", "textworld", "alfworld"}
    assert not {name for name in imports_of(path, top_level=True) if is_within(name, heavy)}
    assert "__future__.annotations" not in names


def test_environments_start_without_jax():
    """Their workers are forked, which JAX's threads do not survive."""
    code = """
import importlib, sys
from atod_jax.envs import worker
for name in sys.argv[1:]:
    plugin = importlib.import_module(f"atod_jax.envs.{name}").ENVIRONMENT
    plugin.make(plugin.Config(), 5).close()
sys.exit("jax" in sys.modules)
"""
    names = plugins.shipped(ENVIRONMENTS)
    assert len(names) >= 3
    assert subprocess.run([sys.executable, "-c", code, *names], cwd=REPO).returncode == 0


@pytest.mark.parametrize("path", FILES + CONFIGS, ids=str)
def test_files_and_functions_stay_short(path):
    assert len(SOURCES[path].splitlines()) <= LONGEST_FILE
    for node in definitions(path):
        if isinstance(node, ast.ClassDef):
            continue
        length = node.end_lineno - node.lineno + 1
        assert length <= LONGEST_FUNCTION, f"{path}:{node.lineno}: {node.name} has {length} lines"


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


def crowded(tree: ast.Module) -> Iterator[str]:
    """Public functions and methods that take more than three arguments by position.

    Beside `self` or `cls`.
    """
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield from _crowded(node, node.name, 3)
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for member in (m for m in node.body if isinstance(m, ast.FunctionDef)):
                is_static = "staticmethod" in map(ast.unparse, member.decorator_list)
                yield from _crowded(member, f"{node.name}.{member.name}", 3 + (not is_static))


def _crowded(node: ast.FunctionDef, name: str, limit: int) -> Iterator[str]:
    is_public = not node.name.startswith("_") or node.name == "__init__"
    if is_public and len(node.args.posonlyargs) + len(node.args.args) > limit:
        yield name


def test_public_functions_take_three_arguments_by_position_at_most():
    found = {
        ".".join([*path.parts[1:-1], path.stem]).removesuffix(".__init__") + f".{name}"
        for path in FILES
        for name in crowded(TREES[path])
    }
    assert found - set(POSITIONAL) == set(), "take the further arguments behind a *"
    assert set(POSITIONAL) - found == set(), "an exception that nobody needs"


def test_the_rules_see_a_breach():
    """The checks above look at real files only; here they are shown something to object to."""
    source = "def a(): pass\nclass B:\n    def c(self):\n        d = 1\n        return d\n"
    assert list(undocumented(ast.parse(source))) == ["a (line 1)", "B (line 2)", "B.c (line 3)"]
    assert is_within("flax.linen.Module", {"flax.linen"})
    assert not is_within("flax.linen_more", {"flax.linen"})
    source = (
        "def f(a, b, c, *, d): pass\ndef g(a, b, c, d=1): pass\ndef _h(a, b, c, d): pass\n"
        "class K:\n    def m(self, a, b, c): pass\n    def n(self, a, b, c, d): pass\n"
    )
    assert list(crowded(ast.parse(source))) == ["g", "K.n"]
    assert climbs({"core": {"types", "models", "device"}}) == ["core -> device"]
    path = Path("atod_jax/core/x.py")
    TREES[path] = ast.parse("from atod_jax import learner\nfrom atod_jax.types import Mean\n")
    try:
        assert parts_imported(path) == {"learner", "types"}
    finally:
        del TREES[path]
