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
