"""What the documents say exists: options, links, commands; what they let run does run."""

import argparse
import contextlib
import importlib
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_runs import result

from atod_jax import config
from atod_jax.run import cli

REPO = Path(__file__).resolve().parents[1]
PACKAGE = REPO / "atod_jax"
GUIDES = sorted((PACKAGE / "guides").glob("*.md"))
TEXTS = [
    *GUIDES, *sorted(REPO.glob("*.md")), *sorted(PACKAGE.glob("*.md")),
    *sorted((PACKAGE / "assets").rglob("README.md")), REPO / "launch" / "README.md",
    REPO / ".github" / "CONTRIBUTING.md",
]  # fmt: skip
TEXTS = [page for page in TEXTS if page.name != "CHANGELOG.md"]  # which tells of what was
PAGES = [
    *TEXTS, *sorted((REPO / "launch").glob("*.sh")), *sorted((REPO / "configs").glob("*.py")),
]  # fmt: skip
OF_EXAMPLES = re.compile(r"(algorithm\.(clipped|fading)|env\.from_file)\..*|section\.key|a\.b")
# What makes a run of a guide short enough for a test; it must not change what is shown.
SHORT = {
    "total_steps": 2, "rollout.tasks": 1, "rollout.group": 2, "packing.minibatch_rows": 8,
    "packing.micro_rows": 8, "env.max_turns": 3, "eval.tasks": 4, "eval.final_tasks": 4,
    "eval.slots": 4, "save_every": 1,
}  # fmt: skip


def name_of(page: Path) -> str:
    return str(page.relative_to(REPO))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_option_that_is_named_exists(page):
    named = set(re.findall(r"--config\.([a-z_0-9]+(?:\.[a-z_0-9]+)*)=", page.read_text()))
    assert {n for n in named - config.catalogue().keys() if not OF_EXAMPLES.fullmatch(n)} == set()


# ------------------------------------------------------------------------------------------- links


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


def test_every_guide_is_linked_from_the_readme():
    page = (REPO / "README.md").read_text(encoding="utf-8")
    assert {g.name for g in GUIDES} <= set(re.findall(r"guides/(\w+\.md)", page))


# ---------------------------------------------------------------------------------------- commands


def commands(page: Path) -> list[list[str]]:
    """The words of every command of the package in the code blocks of a page."""
    found = []
    for line in re.findall(r"^(?:    )?(\S.*)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        line = re.sub(r"^([A-Z_]+=\S+ )*(\.venv/bin/)?", "", line)
        if re.match(r"python -m (atod_jax|configs)\b|(bash )?launch/\w+\.sh( |$)", line):
            words = shlex.split(os.path.expandvars(line), comments=True)
            stops = [i for i, word in enumerate(words) if word in ("|", "&&")]
            found.append(words[: min(stops, default=None)])
    return found


class Parsed(Exception):
    """A command line was understood; nothing of it is done."""


@contextlib.contextmanager
def only_parsing() -> Iterator[None]:
    """Programs stop once argparse has understood their arguments."""
    parse_args = argparse.ArgumentParser.parse_args

    def parse(parser, args=None, namespace=None):
        raise Parsed(parse_args(parser, args, namespace))

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Parsed):
        patch.setattr(argparse.ArgumentParser, "parse_args", parse)
        yield


def understand(words: list[str]) -> tuple[cli.Program, object, argparse.Namespace] | None:
    """Parses a command and checks its options; a program on a config comes back with both."""
    if words[0] != "python":
        script, *arguments = words[words[0] == "bash" :]
        assert (REPO / script).is_file()
        if script == "launch/one_gpu.sh":
            return understand(["python", "-m", "configs.one_gpu", *arguments])
        if script == "launch/local_multiprocess.sh":
            arguments = [f"--config={arguments[1]}", f"--workdir={arguments[2]}", *arguments[3:]]
        options = [word for word in arguments if word.startswith("--config")]
        return (
            understand(["python", "-m", "atod_jax", "train", *options, "--workdir=w"])
            if options
            else None
        )
    _, _, module, *arguments = words
    if module == "atod_jax":
        module, *arguments = f"atod_jax.{arguments[0]}", *arguments[1:]
    program = getattr(importlib.import_module(module), "PROGRAM", None)
    if program:  # the runs that pages speak of are not there: any configuration serves
        if any(word.startswith("--checkpoint") for word in arguments):
            program = program._replace(fallback=lambda flags: config.load("household:smoke"))
        flags, cfg = cli.parse(program, arguments)
        return program, cfg, flags
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(), only_parsing():
        warnings.simplefilter("ignore")  # of runpy: the module is there already
        patch.setattr(sys, "argv", [module, *arguments])
        runpy.run_module(module, run_name="__main__")
    return None


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def write_package(folder: Path) -> list[str]:
    """Writes the modules of the guides as they tell a user to; returns their names."""
    names = []
    for source in [source for guide in GUIDES for source in blocks(guide)]:
        if path := re.match(r"# (my_package/(\w+)\.py):", source):
            (folder / path[1]).parent.mkdir(exist_ok=True)
            (folder / path[1]).write_text(source)
            names.append(f"my_package.{path[2]}")
    record = {"id": "a", "split": "train", "number": "7"}
    (folder / "numbers.jsonl").write_text(json.dumps(record) + "\n")
    return names


@pytest.fixture
def package(tmp_path, monkeypatch) -> Iterator[Path]:
    """A folder of a user's, with the modules that the guides have in it."""
    names = write_package(tmp_path)
    for folder in ("games", "runs/b"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("ALFWORLD_DATA", "games")
    monkeypatch.setenv("PWD", str(REPO))
    for name in names:
        importlib.import_module(name)
    yield tmp_path
    for name in ["my_package", *names]:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("page", [p for p in TEXTS if commands(p)], ids=name_of)
def test_commands_are_understood(page, package):
    """Programs, flags, configs with their variants, options and their values."""
    for words in commands(page):
        understand(words)


@pytest.mark.parametrize("page", [g for g in GUIDES if g.name.startswith("your_own")], ids=name_of)
def test_what_a_guide_lets_play_plays(page, package, capsys):
    for words in commands(page):
        if words[3] == "play" and words[-1] != "--player=model":
            program, cfg, flags = understand([*words, "--games=3"])
            program.start(cfg, flags)
            printed = capsys.readouterr().out
            assert "| **all tasks** |" in printed
            if flags.player == "expert":
                assert re.search(r"\| valid responses \(%\) \| +\| 100\.0 \|", printed)


@pytest.mark.slow
@pytest.mark.parametrize("page", [g for g in GUIDES if g.name.startswith("your_own")], ids=name_of)
def test_what_a_guide_trains_trains(page, package):
    tiny = PACKAGE / "assets" / "household" / "student"
    shutil.copytree(tiny, package / "models" / "smollm2")  # in place of the download
    for words in commands(page):
        if words[3] != "train":
            continue
        done = subprocess.run(
            [sys.executable, *words[1:], *(f"--config.{k}={v}" for k, v in SHORT.items())],
            env=os.environ | {"PYTHONPATH": str(REPO), "XLA_FLAGS": ""},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


# -------------------------------------------------------------------------------------------- code


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


def run_code(source: str, capsys) -> str:
    exec(compile(source, "<guide>", "exec"), {"__name__": "guide"})
    return capsys.readouterr().out


def test_the_code_of_the_guide_to_a_run_reads_one(tmp_path, monkeypatch, capsys):
    """On an episode as `train` writes it."""
    turn = {"d": 1.0, "pieces": ["go", " on"], "streams": {"advantage": [0.5, -0.25]}}
    path = tmp_path / "runs" / "a" / "transcripts" / "000000-train.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"turns": [turn, turn | {"d": 0.5}]}) + "\n")
    monkeypatch.chdir(tmp_path)
    (source,) = blocks(PACKAGE / "guides" / "reading_a_run.md")
    assert run_code(source, capsys) == "+0.500 'go'\n-0.250 ' on'\n"


def test_the_code_of_the_guide_to_comparisons_compares(tmp_path, monkeypatch, capsys):
    """On evaluations as `evaluate` writes them."""
    monkeypatch.chdir(tmp_path)
    for folder, solved in (("k-2", 0.4), ("k-3", 0.5)):
        found = {"results": {"T=0.4": result(solved, 0.4, 40, "task-").to_json()}}
        (tmp_path / "runs" / folder).mkdir(parents=True)
        (tmp_path / "runs" / folder / "evaluation.json").write_text(json.dumps(found))
    page = PACKAGE / "guides" / "comparing_runs.md"
    seeds, gap = (run_code(source, capsys) for source in blocks(page))
    shown = "".join(f"    {line}\n" for line in seeds.splitlines())
    assert shown.startswith("    2 points: ")
    assert f"\n{shown}\n" in page.read_text()
    # 4 of 40 tasks differ: 1.96 sqrt(0.1 * 0.9 / 39) = 9.4 points
    assert gap == "+10.0 [+0.6, +19.4] points\n"
