"""The results that are shipped: made as the shipped study makes them, and said as they are."""

import re
from pathlib import Path

import pytest

from atod_jax.studies.finished import Shelf
from atod_jax.studies.making import require_own
from atod_jax.studies.page import write_study
from configs.study import get_study

REPO = Path(__file__).resolve().parents[2]
RESULTS = REPO / "atod_jax/assets/study/results.jsonl.xz"
# a value, perhaps its interval over tasks, and the one over seeds
SAID = re.compile(r"([+-]?\d+\.\d) (?:\[[^]]*\] )?\{([+-]?\d+\.\d), ([+-]?\d+\.\d)\}")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """study.md, written from the shipped results alone."""
    study, shelf = get_study(), Shelf(tmp_path_factory.mktemp("study"), RESULTS)
    assert require_own(shelf, study.jobs) == []
    return write_study(study, shelf).read_text()


def test_the_results_of_STUDY_md_are_those_of_the_page(page):
    text = (REPO / "atod_jax/STUDY.md").read_text()
    section = text.partition("\n## Results\n")[2].partition("\n## ")[0]
    said = set(SAID.findall(section))
    assert said, "the section says no number of the study"
    assert said - set(SAID.findall(page)) == set()
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert rows
    assert [row for row in rows if row not in page] == []


ROWS = {  # of README -> settings
    "commands, bad teacher": "stopped",
    "commands, middle teacher": "mid",
    "the same, 120 steps instead of 60": "long",
    "commands, good teacher": "good",
    "a student that saw messy play only": "weak",
    "a student that was stopped halfway": "half",
    "thoughts of 20 tokens": "thoughts",
    "thoughts in an order that the teacher seldom uses": "turned",
    "thoughts in an order that it never saw": "foreign",
    "rooms of 40 turns": "large",
}
BRACES = re.compile(r"\{([+-]?\d+\.\d), ([+-]?\d+\.\d)\}")


def intervals(text):
    """Those in braces, whichever side was taken from the other."""
    each = [(float(low), float(high)) for low, high in BRACES.findall(text)]
    return {max((low, high), (-high, -low)) for low, high in each}


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_README_and_the_answers_say_what_the_page_says(page):
    readme, text = ((REPO / name).read_text() for name in ("README.md", "atod_jax/STUDY.md"))
    section = readme.partition("\n## What the algorithms do here\n")[2].partition("\n## ")[0]
    head, _, *rows = [cells(row) for row in section.splitlines() if row.startswith("|")]
    glance = page.partition("\n## At a glance\n")[2].partition("\n## ")[0]
    names, _, *found = [cells(row) for row in glance.splitlines() if row.startswith("|")]
    known = {}
    for row in found:  # of a setting the one of the most seeds comes first
        known.setdefault(row[0], dict(zip(names, row, strict=True)))
    for row in rows:
        assert row[1:] == [known[ROWS[row[0]]][name] for name in head[1:]]
    answers = text.partition("\n## Answers\n")[2].partition("\n## ")[0]
    assert len(intervals(section)) > 3
    assert len(intervals(answers)) > 10
    assert intervals(section) <= intervals(page)
    assert intervals(answers) <= intervals(page)


def test_README_says_of_the_quickstart_what_its_five_seeds_came_to(page):
    rows = re.findall(r"^\| temperature (.*)$", (REPO / "README.md").read_text(), re.M)
    assert len(rows) == 2
    for temperature, *said in map(cells, rows):
        section = page.partition(f"### quickstart at temperature {temperature}\n")[2]
        found = {}
        for line in section.partition("\n### ")[0].splitlines():
            if line.startswith("|") and "/" in line:
                name, mean, by_seed, _ = cells(line)
                seeds = sorted(by_seed.split(" / "), key=float)
                found[name] = mean.split()[0], f"{mean.split()[0]} ({seeds[0]} to {seeds[-1]})"
        names = ("*before training*", "ATOD", "*teacher*", "ATOD - teacher")
        assert said == [found[name][i] for name, i in zip(names, (0, 1, 0, 1), strict=True)]
