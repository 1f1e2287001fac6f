"""What a recorded turn holds, for people and for TFDS."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

NAME, VERSION = "episodes", "1.0.0"

# name -> (type, meaning); reward, is_first, is_last, is_terminal, observation and action as in RLDS
FIELDS = {
    "episode_id": ("text", "training step / number of the episode in it"),
    "step": ("int", "iteration of the training run"),
    "turn": ("int", "0-based inside the episode; -1: the one record of an episode without turns"),
    "is_first": ("bool", "the first turn"),
    "is_last": ("bool", "the last turn"),
    "is_terminal": ("bool", "the environment ended the episode with this turn"),
    "task_id": ("text", "the problem"),
    "task_kind": ("text", "results are grouped by it"),
    "group": ("int", "episodes of the same task in this step share it"),
    "success": ("bool", "of the episode"),
    "score": ("float64", "graded outcome of the episode, in [0, 1]"),
    "stop": ("text", "why the episode ended"),
    "observation": ("text", "what the environment showed before the action"),
    "prompt": ("ids", "what the student read"),
    "teacher_prompt": ("ids", "what the teacher read instead; empty: the same"),
    "action": ("ids", "what the student sampled, end token included"),
    "logp": ("floats", "log-probability of each action token when it was sampled, nats"),
    "response": ("text", "the action as text"),
    "command": ("text", "what was sent to the environment"),
    "valid": ("bool", "the response held a command"),
    "replayed": ("bool", "played for the student: no ids, never trained on"),
    "reward": ("float64", "of the environment for this turn"),
    "problem": ("text", "what went wrong in this turn; empty: nothing"),
    "d": ("float", "disagreement of student and teacher, nats; nan: unknown"),
    "h": ("float", "uncertainty of the student, nats; nan: unknown"),
    "w": ("float", "T-DUR weight of the turn; nan: unknown"),
}


def dataset_info(folder: Path, tokenizer: str, fields: Sequence[str]) -> Any:
    """The DatasetInfo of a data set in `folder`; `tokenizer` is the digest of that of its ids."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.dataset_info import DatasetIdentity

    identity = DatasetIdentity(
        name=NAME, version=tfds.core.Version(VERSION), data_dir=str(folder), module_name=__name__
    )
    return tfds.core.DatasetInfo(
        builder=identity,
        description="Episodes of a training run, a record per turn, a split per training step.",
        features=_features(fields),
        metadata=tfds.core.MetadataDict(tokenizer=tokenizer),
    )


def _features(fields: Sequence[str]) -> Any:
    """Their types; float64 goes as bytes, since an Example holds float32 only."""
    from tensorflow_datasets import features as f

    make = {
        "text": lambda doc: f.Text(doc=doc),
        "int": lambda doc: f.Scalar(np.int32, doc=doc),
        "bool": lambda doc: f.Scalar(np.bool_, doc=doc),
        "float": lambda doc: f.Scalar(np.float32, doc=doc),
        "float64": lambda doc: f.Tensor(
            shape=(), dtype=np.float64, encoding=f.Encoding.BYTES, doc=doc
        ),
        "ids": lambda doc: f.Tensor(shape=(None,), dtype=np.int32, doc=doc),
        "floats": lambda doc: f.Tensor(shape=(None,), dtype=np.float32, doc=doc),
    }
    return f.FeaturesDict(
        {name: make[kind](doc) for name in fields for kind, doc in [FIELDS[name]]}
    )
