"""Recorded episodes, opened for reading; `store` writes them and says what a record holds."""

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atod_jax.episodes.store import (
    FIELDS,
    LATER,
    NAME,
    TEXTS,
    TOKEN_COLUMNS,
    TURN_COLUMNS,
    VERSION,
    cut,
    opened,
    split_name,
)
from atod_jax.records import StopReason, Task, Trace, Trajectory, Turn
from atod_jax.texts import of_error


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
        self._builder = opened(self.folder)
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
        if damaged := cut(self._builder.info):
            raise ValueError(
                f"{self.folder}: the records of {len(damaged)} of {len(self.steps)} steps are "
                f"damaged or gone; restore {self.folder / f'{NAME}-{damaged[0]}.*'}, the first"
            )

    def read(self, step: int) -> tuple[list[Trajectory], list[Trace]]:
        """The episodes of a training step as they were written, with what was known of each.

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
            return [_trajectory(e) for e in episodes], [_trace(e) for e in episodes]
        except Exception as error:  # array_record and TFDS raise many kinds
            raise ValueError(
                f"{self.folder / f'{NAME}-{name}.*'} is damaged ({of_error(error)}); restore the "
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


def _trace(records: Sequence[Mapping[str, Any]]) -> Trace:
    turns = [record for record in records if record["turn"] >= 0]
    tokens = {
        name: [record[field] for record in turns]
        for name, field in TOKEN_COLUMNS.items()
        if any(len(record.get(field, ())) for record in turns)
    }
    return Trace({name: [float(record[name]) for record in turns] for name in TURN_COLUMNS}, tokens)
