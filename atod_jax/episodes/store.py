"""Finished episodes as a TFDS data set: one flat record per turn, one split per training step.

    tfds.builder_from_directory("<workdir>/episodes/1.0.0").as_data_source("step_000012")

The files are array_record and are read without TensorFlow; the split "all" is every step. `FIELDS`
says what a record holds. Reading gives back what was written, bit for bit; only the payload of a
task, the environment's business, is not kept.
"""

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atod_jax.records import StopReason, Trace, Trajectory, Turn
from atod_jax.texts import of_error, read_object

NAME, VERSION = "episodes", "1.0.0"
TURN_COLUMNS = ("d", "h", "w")
# names in a trace -> fields
TOKEN_COLUMNS = {
    "student": "student_logp",
    "teacher": "teacher_logp",
    "entropy": "entropy",
    "advantage": "advantage",
    "distill": "distill",
}

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
    "student_logp": ("floats", "of each action token before the update, nats; empty: unknown"),
    "teacher_logp": ("floats", "the teacher's log-probability of it, nats; empty: unknown"),
    "entropy": ("floats", "of the student before each action token, nats; empty: unknown"),
    "advantage": ("floats", "of each action token; empty: unknown"),
    "distill": ("floats", "the teacher's part of the advantage; empty: none, or unknown"),
}
# data sets from before these lack them, and go on without
LATER = frozenset({"problem", *TOKEN_COLUMNS.values()})
TEXTS = tuple(name for name, (kind, _) in FIELDS.items() if kind == "text")

_NOTHING, _NO_NUMBERS = np.zeros(0, np.int32), np.zeros(0, np.float32)
_NO_TURN = Turn(
    prompt=_NOTHING,
    action=_NOTHING,
    logp=_NO_NUMBERS,
    observation="",
    response="",
    command="",
    valid=True,
    reward=0.0,
)


def split_name(step: int) -> str:
    """The split that holds the episodes of a training step."""
    return f"step_{step:06d}"


# ------------------------------------------------------------------------------------------ writing


class EpisodeWriter:
    """Writes the episodes of a run, every step atomically.

    A step that is written again, as after a resume, takes the place of its earlier version.

    Args:
      folder: of the data set; made when needed.
      tokenizer: digest of the tokenizer that the ids belong to.
    """

    def __init__(self, folder: Path, tokenizer: str):
        self._folder, self._scratch = folder / VERSION, folder / VERSION / ".partial"
        self._tokenizer = tokenizer
        # TFDS keeps every data set that it has opened: the one there is opened once
        self._fields, self._splits = list(FIELDS), {}
        if (self._folder / "dataset_info.json").is_file():
            there = opened(self._folder).info
            self._fields = [name for name in FIELDS if name in there.features]
            self._splits = dict(there.splits)
            if damaged := cut(there):
                print(
                    f"warning: {self._folder}: the records of {len(damaged)} of "
                    f"{len(self._splits)} steps are damaged or gone, {damaged[0]} the first",
                    file=sys.stderr,
                )

    def write(
        self,
        step: int,
        trajectories: Sequence[Trajectory],
        traces: Sequence[Trace] | None = None,
    ) -> None:
        """Adds the episodes of one step, with what is known of their turns and tokens."""
        name = split_name(step)
        traces = [Trace()] * len(trajectories) if traces is None else traces
        records = [
            record
            for number, (episode, known) in enumerate(zip(trajectories, traces, strict=True))
            for record in _records(step, number, episode, known)
        ]
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir(parents=True)
        try:
            info = self._write_shard(name, records)
        except RuntimeError as error:  # what array_record raises for errors of files
            reason = of_error(error)
            raise OSError(f"{self._folder}: {name} cannot be written ({reason})") from error
        published = self._splits
        splits = published | {name: info.splits[name]}
        if name in published:  # the index must never describe another version of a file
            self._publish(info, [s for s in published.values() if s.name != name])
        for shard in self._scratch.glob(f"{NAME}-{name}.*"):
            os.replace(shard, self._folder / shard.name)
        self._publish(info, [splits[key] for key in sorted(splits)])
        self._splits = splits
        shutil.rmtree(self._scratch)

    def _write_shard(self, name: str, records: list[dict[str, Any]]) -> Any:
        """The file of one split in the scratch folder; returns the DatasetInfo that tells of it."""
        import tensorflow_datasets as tfds

        info = _dataset_info(self._scratch, self._tokenizer, self._fields)
        writer = tfds.core.SequentialWriter(
            info, max_examples_per_shard=len(records), file_format="array_record"
        )
        writer.initialize_splits([name])
        writer.add_examples({name: [{f: record[f] for f in self._fields} for record in records]})
        writer.close_all()
        return info

    def _publish(self, info: Any, splits: Sequence[Any]) -> None:
        """Makes exactly these splits the content of the data set."""
        from tensorflow_datasets.core.splits import SplitDict

        info.set_splits(SplitDict(splits))
        info.write_to_directory(self._scratch)
        for file in ("features.json", "metadata.json", "dataset_info.json"):
            os.replace(self._scratch / file, self._folder / file)


def _dataset_info(folder: Path, tokenizer: str, fields: Sequence[str]) -> Any:
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


def _records(step: int, number: int, episode: Trajectory, trace: Trace) -> Iterator[dict[str, Any]]:
    last = len(episode.turns) - 1
    same = {
        "episode_id": f"{step}/{number}",
        "step": step,
        "task_id": episode.task.id,
        "task_kind": episode.task.kind,
        "group": episode.group,
        "success": episode.success,
        "score": np.float64(episode.score),
        "stop": episode.stop.value,
    }
    for k, turn in enumerate(episode.turns) if episode.turns else [(-1, _NO_TURN)]:
        place = {
            "turn": k,
            "is_first": k <= 0,
            "is_last": k == last,
            "is_terminal": k == last and episode.stop is StopReason.done,
        }
        known = {
            c: trace.turns[c][k] if c in trace.turns and k >= 0 else np.nan for c in TURN_COLUMNS
        }
        of_tokens = {
            field: trace.tokens[name][k] if name in trace.tokens and k >= 0 else _NO_NUMBERS
            for name, field in TOKEN_COLUMNS.items()
        }
        yield same | place | _turn_record(turn) | known | of_tokens


def _turn_record(turn: Turn) -> dict[str, Any]:
    return {
        "observation": turn.observation,
        "prompt": turn.prompt,
        "teacher_prompt": _NOTHING if turn.teacher_prompt is None else turn.teacher_prompt,
        "action": turn.action,
        "logp": turn.logp,
        "response": turn.response,
        "command": turn.command,
        "valid": turn.valid,
        "replayed": turn.replayed,
        "reward": np.float64(turn.reward),
        "problem": turn.problem,
    }


def opened(folder: Path) -> Any:
    """The data set in a folder.

    Raises:
      ValueError: it is damaged.
    """
    import tensorflow_datasets as tfds

    for file in sorted(folder.glob("*.json")):
        read_object(file, f"move {folder} away to record again")
    try:
        builder = tfds.builder_from_directory(folder)
        info: Any = builder.info
        _ = set(info.features), dict(info.metadata), set(info.splits)
    except Exception as error:  # whatever TFDS trips over in a damaged file
        raise ValueError(
            f"{folder} is not a readable data set ({of_error(error)}); move it away to record again"
        ) from error
    return builder


def cut(info: Any) -> list[str]:
    """The splits of whose records not all are there; the files are opened, not read."""
    from array_record.python.array_record_module import ArrayRecordReader

    def count(path: Any) -> int:
        try:
            return ArrayRecordReader(str(path)).num_records()
        except Exception:  # there is no such file
            return 0

    splits = sorted(info.splits.items())
    return [n for n, s in splits if list(map(count, s.filepaths)) != list(s.shard_lengths)]
