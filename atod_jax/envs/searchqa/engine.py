"""One question being played: searches, the answer, and when it counts."""

from collections.abc import Sequence

from atod_jax.envs.base import Observation, StepResult
from atod_jax.envs.searchqa import information, scoring, tags
from atod_jax.envs.searchqa.prompts import INSTRUCTIONS
from atod_jax.envs.searchqa.questions import Question
from atod_jax.envs.searchqa.retrieve import Retriever
from atod_jax.records import Task


class SearchEnv:
    """A player for one question at a time.

    A command is a whole `<search>query</search>` or `<answer>text</answer>` block; anything else
    uses up the turn and shows nothing. The episode ends with an answer, or with the last turn,
    whose search is not carried out any more. In the "json" form the last answer block of the
    player counts; in the "plain" form the transcript begins with the prompt, whose example counts
    as one, so that two are needed. `max_turns` 0: there is no last turn.
    """

    def __init__(
        self, retriever: Retriever, *, win_reward: float, max_turns: int, topk: int, form: str
    ):
        self._retriever = retriever
        self._win_reward = win_reward
        self._max_turns, self._topk, self._form = max_turns, topk, form
        self._opening = INSTRUCTIONS if form == "plain" else ""
        self._question: Question | None = None

    def reset(self, task: Task) -> Observation:
        """Starts the question in `task.payload` and shows it."""
        self._question = task.payload
        self._turns, self._transcript = 0, [self._opening]
        return Observation(task.payload.question)

    def step(self, command: str) -> StepResult:
        """Plays one command; reward is `win_reward` on the last step if the answer matches.

        Raises:
          ValueError: no question is being played (before `reset`, after the end or `close`).
          RetrieverError: the search failed; the step did not take place and may be repeated.
        """
        if self._question is None:
            raise ValueError(f"step({command[:80]!r}) without a question; call reset(task) first")
        question, last = self._question, self._turns + 1 == self._max_turns
        done = last or bool(tags.blocks("answer", command))
        text = "" if done else self._search(command)
        self._turns += 1
        self._transcript.append(command)  # what was found is no answer, whatever tags it holds
        if not done:
            return StepResult(Observation(text), 0.0, done=False, won=False)
        self._question = None
        won = self._is_right(question.answers)
        return StepResult(Observation(text), self._win_reward if won else 0.0, done=True, won=won)

    def close(self) -> None:
        """Ends the question, if one is being played."""
        self._question = None

    def _search(self, command: str) -> str:
        queries = tags.blocks("search", command)
        if not queries:
            return ""
        (hits,) = self._retriever.search([queries[0].strip()], self._topk)
        return information.show([hit.contents for hit in hits], self._form)

    def _is_right(self, accepted: Sequence[str]) -> bool:
        given = len(tags.blocks("answer", self._opening))
        answer = scoring.final_answer("\n".join(self._transcript), given=given)
        return answer is not None and scoring.exact_match(answer, accepted)
