"""Household games as a TFDS data set: prepared from a file, read back without TensorFlow."""

import json
import lzma
import subprocess
import sys

import pytest

from atod_jax.envs import alfworld
from atod_jax.envs.alfworld import prepare
from atod_jax.envs.alfworld.games import read_games


@pytest.fixture(scope="module")
def games(data_dir, tmp_path_factory):
    """A file with the first games of every split."""
    kept = {"train": [], "valid_seen": [], "valid_unseen": []}
    with lzma.open(data_dir / "alfworld" / "games.jsonl.xz", "rt", encoding="utf-8") as lines:
        for line in lines:
            some = kept[json.loads(line)["split"]]
            if len(some) < 20:
                some.append(line)
    path = tmp_path_factory.mktemp("games") / "games.jsonl"
    path.write_text("".join(line for some in kept.values() for line in some), encoding="utf-8")
    return path


def test_a_prepared_set_holds_the_games_of_its_file(games, tmp_path):
    folder = prepare.prepare(games, tmp_path)
    for split in alfworld.ENVIRONMENT.splits:
        ours = alfworld.tasks(alfworld.Config(games=str(folder)), split)
        theirs = alfworld.tasks(alfworld.Config(games=str(games)), split)
        assert {t.id: t for t in ours} == {t.id: t for t in theirs}
        assert len(ours) > 0
    assert len(read_games(folder)) == len(read_games(games))
    with pytest.raises(ValueError, match="split 'test' is unknown"):
        alfworld.tasks(alfworld.Config(games=str(folder)), "test")


def test_it_is_read_without_tensorflow(games, tmp_path):
    folder = prepare.prepare(games, tmp_path)
    count = len(read_games(games, "train"))
    code = (
        "import sys, tensorflow_datasets as tfds\n"
        f"source = tfds.builder_from_directory({str(folder)!r}).as_data_source('train')\n"
        f"assert len(source) == {count} > 0 and source[0]['goal'], len(source)\n"
        "assert 'tensorflow' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_nothing_is_written_of_a_damaged_file(games, tmp_path):
    broken = tmp_path / "games.jsonl"
    broken.write_text(games.read_text(encoding="utf-8") + "{}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"games\.jsonl, line \d+: not a game"):
        prepare.prepare(broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()
