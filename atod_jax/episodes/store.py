"""Finished episodes as a TFDS data set: one flat record per turn, one split per training step.

    tfds.builder_from_directory("<workdir>/episodes/1.0.0").as_data_source("step_000012")

The files are array_record and are read without TensorFlow; the split "all" is every step. `FIELDS`
says what a record holds. Reading gives back what was written, bit for bit; only the payload of a
task, the environment's business, is not kept.
"""

import itertools
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atod_jax.episodes.schema import FIELDS, NAME, VERSION, dataset_info
from atod_jax.records import StopReason, Task, Trajectory, Turn
from atod_jax.texts import one_line, read_object

TURN_COLUMNS = ("d", "h", "w")
Columns = Mapping[str, Sequence[float]]  # a number per turn under each name

LATER = frozenset({"problem"})  # data sets from before it lack it, and go on without it
TEXTS = tuple(name for name, (kind, _) in FIELDS.items() if kind == "text")

_NOTHING = np.zeros(0, np.int32)
_NO_TURN = Turn(
    prompt=_NOTHING,
    action=_NOTHING,
    logp=np.zeros(0, np.float32),
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
            there = _opened(self._folder).info
            self._fields = [name for name in FIELDS if name in there.features]
            self._splits = dict(there.splits)
            if cut := _cut(there):
                print(
                    f"warning: {self._folder}: the records of {len(cut)} of {len(self._splits)} "
                    f"steps are damaged or gone, {cut[0]} the first",
                    file=sys.stderr,
                )

    def write(
        self,
        step: int,
        trajectories: Sequence[Trajectory],
        columns: Sequence[Columns] | None = None,
    ) -> None:
        """Adds the episodes of one step, with d, h and w per turn where they are known."""
        name = split_name(step)
        columns = [{}] * len(trajectories) if columns is None else columns
        records = [
            record
            for number, (episode, known) in enumerate(zip(trajectories, columns, strict=True))
            for record in _records(step, number, episode, known)
        ]
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir(parents=True)
        try:
            info = self._write_shard(name, records)
        except RuntimeError as error:  # what array_record raises for errors of files
            raise OSError(f"{self._folder}: {name} cannot be written ({_said(error)})") from error
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

        info = dataset_info(self._scratch, self._tokenizer, self._fields)
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


def _records(
    step: int, number: int, episode: Trajectory, columns: Columns
) -> Iterator[dict[str, Any]]:
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
        known = {c: columns[c][k] if c in columns and k >= 0 else np.nan for c in TURN_COLUMNS}
        yield same | place | _turn_record(turn) | known


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


# ------------------------------------------------------------------------------------------ reading


class EpisodeReader:
    """Recorded episodes, opened for reading.

    Args:
      path: a workdir of train, or the folder of a data set.

    Raises:
      FileNotFoundError: there is no data set.
      ValueError: it is damaged or holds something else.
    """

    def __init__(self, path: str | Path):
        self.folder = _dataset_folder(Path(path))
        self._builder = _opened(self.folder)
        fields, metadata = set(self._builder.info.features), dict(self._builder.info.metadata)
        names = list(self._builder.info.splits)
        missing = sorted(FIELDS.keys() - LATER - fields) + ["tokenizer"] * (
            "tokenizer" not in metadata
        )
        if missing:
            raise ValueError(
                f"{self.folder} holds no recorded episodes: it lacks {', '.join(missing[:5])}; "
                "name a folder written by train with --config.record=true"
            )
        self.tokenizer = str(metadata["tokenizer"])  # digest of the one the ids belong to
        numbers = [re.fullmatch(r"step_(\d+)", name) for name in names]
        self.steps = sorted(int(match[1]) for match in numbers if match)

    def require_whole(self) -> None:
        """Looks at the files of all steps, before the first is needed.

        Raises:
          ValueError: one is cut short or gone; a changed bit is found when it is read.
        """
        if cut := _cut(self._builder.info):
            raise ValueError(
                f"{self.folder}: the records of {len(cut)} of {len(self.steps)} steps are damaged "
                f"or gone; restore {self.folder / f'{NAME}-{cut[0]}.*'}, the first"
            )

    def read(self, step: int) -> tuple[list[Trajectory], list[dict[str, list[float]]]]:
        """The episodes of a training step as they were written; d, h and w per turn of each.

        Raises:
          ValueError: no such step, or its file is damaged.
        """
        if step not in self.steps:
            there = f"{self.steps[0]} to {self.steps[-1]}" if self.steps else "none"
            raise ValueError(f"no step {step} in {self.folder}; recorded steps: {there}")
        name = split_name(step)
        try:
            records = [_with_texts(record) for record in self._builder.as_data_source(name)]
            episodes = [list(e) for _, e in itertools.groupby(records, lambda r: r["episode_id"])]
            return [_trajectory(e) for e in episodes], [_columns(e) for e in episodes]
        except Exception as error:  # array_record and TFDS raise many kinds
            raise ValueError(
                f"{self.folder / f'{NAME}-{name}.*'} is damaged ({_said(error)}); restore the "
                "file or record the step again"
            ) from error


def _dataset_folder(path: Path) -> Path:
    for candidate in (path, path / VERSION, path / NAME / VERSION):
        if (candidate / "dataset_info.json").is_file():
            return candidate
    raise FileNotFoundError(
        f"no recorded episodes in {str(path)!r}: name the workdir of a run of train with "
        f"--config.record=true, or the folder of the data set, such as <workdir>/{NAME}/{VERSION}"
    )


def _cut(info: Any) -> list[str]:
    """The splits of whose records not all are there; the files are opened, not read."""
    from array_record.python.array_record_module import ArrayRecordReader

    def count(path: Any) -> int:
        try:
            return ArrayRecordReader(str(path)).num_records()
        except Exception:  # there is no such file
            return 0

    splits = sorted(info.splits.items())
    return [n for n, s in splits if list(map(count, s.filepaths)) != list(s.shard_lengths)]


def _opened(folder: Path) -> Any:
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
            f"{folder} is not a readable data set ({_said(error)}); move it away to record again"
        ) from error
    return builder


def _said(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}", longest=200)


def _with_texts(record: Mapping[str, Any]) -> dict[str, Any]:
    return {**record} | {name: record[name].decode() for name in TEXTS if name in record}


def _trajectory(records: Sequence[Mapping[str, Any]]) -> Trajectory:
    first = records[0]
    return Trajectory(
        task=Task(id=first["task_id"], kind=first["task_kind"], payload=None),
        group=int(first["group"]),
        turns=tuple(_turn(record) for record in records if record["turn"] >= 0),
        success=bool(first["success"]),
        stop=StopReason(first["stop"]),
        score=float(first["score"]),
    )


def _turn(record: Mapping[str, Any]) -> Turn:
    teacher_prompt = record["teacher_prompt"]
    return Turn(
        prompt=record["prompt"],
        action=record["action"],
        logp=record["logp"],
        observation=record["observation"],
        response=record["response"],
        command=record["command"],
        valid=bool(record["valid"]),
        reward=float(record["reward"]),
        teacher_prompt=teacher_prompt if len(teacher_prompt) else None,
        replayed=bool(record["replayed"]),
        problem=record.get("problem", ""),
    )


def _columns(records: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    turns = [record for record in records if record["turn"] >= 0]
    return {name: [float(record[name]) for record in turns] for name in TURN_COLUMNS}
