"""The builder of `prepare.py`: a class of its own, since TFDS wants to import it by name."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from atod_jax.envs.webshop.shop import Shop


class ShopGoals(tfds.core.GeneratorBasedBuilder):
    """Flat records of goals; `options` is a JSON list of [name, value] or of values alone."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "What shoppers ask for."}

    def __init__(self, *, shop: Shop, numbers: Mapping[str, Sequence[int]], **kwargs: Any):
        self._shop, self._numbers = shop, numbers
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        texts = ("id", "asin", "instruction", "options", "category", "title")
        features = dict.fromkeys(texts, tfds.features.Text())
        features["attributes"] = tfds.features.Sequence(tfds.features.Text())
        features["price_limit"] = tfds.features.Scalar(np.float32)
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict]]]:
        return {split: self._generate_examples(split) for split in self._numbers}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for number in self._numbers[split]:
            goal = self._shop.goal(number)
            yield (
                f"goal-{number}",
                {
                    "id": f"goal-{number}",
                    "asin": goal.asin,
                    "instruction": goal.instruction,
                    "options": json.dumps(goal.options),
                    "category": goal.category,
                    "title": goal.title,
                    "attributes": list(goal.attributes),
                    "price_limit": goal.price_limit,
                },
            )
