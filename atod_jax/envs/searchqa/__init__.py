"""Search-QA as text: questions that are answered with a search engine, at most a few turns each."""

import dataclasses
import functools
from collections.abc import Sequence

from atod_jax.envs import jsonl, scripted
from atod_jax.envs.base import FINITE, Environment, Expert
from atod_jax.envs.searchqa import client, expert, generate, information, questions, retrieve
from atod_jax.envs.searchqa.engine import SearchEnv
from atod_jax.envs.searchqa.prompts import TEMPLATES
from atod_jax.envs.searchqa.questions import SPLITS
from atod_jax.options.field import SEED, at_least, check, one_of, option
from atod_jax.records import Task


@dataclasses.dataclass(frozen=True)
class Config:
    """Which questions are asked, and how they are searched for."""

    data: str = option("", "folder with questions and corpus.jsonl[.gz]; empty: a generated world")
    seed: int = option(0, "of the generated world", SEED)
    retriever: str = option(
        "", "URL of a search server; empty: BM25 over the corpus in every process", pins=False
    )
    topk: int = option(3, "passages shown per search", at_least(1))
    information: str = option("json", "form of the results", one_of(*information.FORMS))
    win_reward: float = option(
        1.0, "paid once, on the last step, for an exact match; else 0", FINITE
    )

    def __post_init__(self):
        check(self)


def tasks(cfg: Config, split: str) -> Sequence[Task]:
    """The questions of a split, of `cfg.data` or of the generated world.

    Raises:
      ValueError: unknown split, a split without questions, or a damaged file.
      FileNotFoundError: no questions in `cfg.data`.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; use one of {', '.join(SPLITS)}")
    world = not cfg.data
    found = generate.world(cfg.seed).questions[split] if world else questions.load(cfg.data, split)
    return [Task(id=q.id, kind=q.dataset, payload=q) for q in found]


def make(cfg: Config, max_turns: int = 0) -> SearchEnv:
    """A player for the questions of `cfg`; the first in a process builds the index or connects.

    The last of `max_turns` turns does not search any more; 0: there is no last turn.

    Raises:
      ValueError: a damaged corpus, or a search server that does not answer.
      FileNotFoundError: no corpus in `cfg.data`.
    """
    return SearchEnv(
        _retriever(cfg),
        win_reward=cfg.win_reward,
        max_turns=max_turns,
        topk=cfg.topk,
        form=cfg.information,
    )


def _retriever(cfg: Config) -> retrieve.Retriever:
    if cfg.retriever:
        found = _client(cfg.retriever)
        found.reach()
        return found
    if not cfg.data:
        return generate.index(cfg.seed)
    path = jsonl.find(cfg.data, "corpus.jsonl")
    if path is None:
        raise FileNotFoundError(
            f"env.searchqa.data={cfg.data!r}: no corpus.jsonl or corpus.jsonl.gz there; put one in"
            f" it, or name a search server as env.searchqa.retriever ({client.START})"
        )
    return retrieve.load(path)


_client = functools.cache(client.HttpRetriever)


def demonstration(cfg: Config, task: Task, max_turns: int) -> tuple[str, ...]:
    """What the scripted expert does, where that wins within `max_turns`, else ()."""
    return scripted.solve(make(cfg, max_turns), expert.act, task=task, max_turns=max_turns)


ENVIRONMENT = Environment(
    Config=Config,
    splits=SPLITS,
    templates=TEMPLATES,
    tasks=tasks,
    make=make,
    demonstration=demonstration,
    expert=Expert(expert.act, expert.thought, expert.disturb),
    answer=lambda task: " or ".join(task.payload.answers),
    data=(
        "RUC-NLPIR/FlashRAG_datasets of the Hugging Face hub, python -m"
        " atod_jax.envs.searchqa.prepare, then --config.env.searchqa.data=FOLDER with a"
        " corpus.jsonl, or --config.env.searchqa.retriever=URL; without them questions are about a"
        " generated world"
    ),
)
