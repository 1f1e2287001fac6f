"""The builder of `prepare.py`: a class of its own, since TFDS wants to import it by name."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from atod_jax.envs.searchqa.questions import Question


class SearchQa(tfds.core.GeneratorBasedBuilder):
    """Flat records {id, dataset, split, question, answers} of what `read` yields per split."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Question answering sets with accepted answers."}

    def __init__(self, *, read: Mapping[str, Callable[[], Iterator[Question]]], **kwargs: Any):
        self._read = read
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        features = dict.fromkeys(("id", "dataset", "split", "question"), text)
        features["answers"] = tfds.features.Sequence(text)
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict]]]:
        return {split: self._generate_examples(split) for split in self._read}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for question in self._read[split]():
            yield question.id, {**question._asdict(), "answers": list(question.answers)}
