"""The builder of `prepare.py`: a class of its own, since TFDS wants to import it by name."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import tensorflow_datasets as tfds


class HouseholdGames(tfds.core.GeneratorBasedBuilder):
    """Flat records {id, task_type, goal, game} per split; `game` is the whole game as JSON."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Household games with their rooms, goals and plans."}

    def __init__(self, *, games: Mapping[str, Sequence[Mapping[str, str]]], **kwargs: Any):
        self._games = games
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        features = dict.fromkeys(("id", "task_type", "goal", "game"), text)
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict]]]:
        return {split: self._generate_examples(split) for split in self._games}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, str]]]:
        for game in self._games[split]:
            yield game["id"], dict(game)
