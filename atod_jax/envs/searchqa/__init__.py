"""Search-QA as text: questions that are answered with a search engine, at most a few turns each."""

import dataclasses
import functools
from collections.abc import Sequence

from atod_jax.envs.base import Episode
from atod_jax.envs.searchqa import client, expert, generate, information, jsonl, questions, retrieve
from atod_jax.envs.searchqa.engine import SearchEnv
from atod_jax.envs.searchqa.prompts import TEMPLATES
from atod_jax.envs.searchqa.questions import SPLITS
from atod_jax.records import Task

__all__ = ["DATA", "SPLITS", "TEMPLATES", "Config", "demonstration", "expert", "make", "tasks"]
DATA = (
    "RUC-NLPIR/FlashRAG_datasets of the Hugging Face hub, python -m atod_jax.envs.searchqa.prepare,"
    " then --config.env.data=FOLDER with a corpus.jsonl, or --config.env.retriever=URL; without"
    " them questions are about a generated world"
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Which questions are asked, and how they are searched for."""

    data: str = ""  # folder with questions and corpus.jsonl[.gz]; empty: a generated world
    seed: int = 0  # of the generated world
    retriever: str = ""  # URL of a search server; empty: BM25 over the corpus in this process
    topk: int = 3  # passages shown per search
    information: str = "json"  # form of the results: json | plain
    win_reward: float = 1.0  # paid once, on the last step, for an exact match; else 0
    max_turns: int = 4  # the last turn's search is not carried out

    def __post_init__(self):
        if self.topk < 1:
            raise ValueError(f"env.topk={self.topk}: show at least 1 passage")
        if self.information not in information.FORMS:
            forms = ", ".join(information.FORMS)
            raise ValueError(f"env.information={self.information!r}: choose from {forms}")


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


def make(cfg: Config) -> SearchEnv:
    """A player for the questions of `cfg`; the first in a process builds the index or connects.

    Raises:
      ValueError: a damaged corpus, or a search server that does not answer.
      FileNotFoundError: no corpus in `cfg.data`.
    """
    return SearchEnv(
        _retriever(cfg),
        win_reward=cfg.win_reward,
        max_turns=cfg.max_turns,
        topk=cfg.topk,
        form=cfg.information,
    )


def _retriever(cfg: Config) -> retrieve.Retriever:
    if cfg.retriever:
        return _connected(cfg.retriever)
    if not cfg.data:
        return generate.index(cfg.seed)
    path = jsonl.find(cfg.data, "corpus.jsonl")
    if path is None:
        raise FileNotFoundError(
            f"env.data={cfg.data!r}: no corpus.jsonl or corpus.jsonl.gz there; put one in"
            f" it, or name a search server as env.retriever ({client.START})"
        )
    return retrieve.load(path)


_connected = functools.cache(client.connect)


def demonstration(cfg: Config, task: Task, max_turns: int) -> tuple[str, ...]:
    """What the scripted expert does, where that wins within `max_turns`, else ()."""
    env, past = make(cfg), ()
    shown = env.reset(task)
    for _ in range(min(max_turns, cfg.max_turns)):
        command = expert.act(Episode(past, shown))
        past = (*past, (shown.text, command))
        result = env.step(command)
        shown = result.observation
        if result.done:
            return tuple(sent for _, sent in past) if result.won else ()
    return ()
