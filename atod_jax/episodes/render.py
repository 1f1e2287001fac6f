"""Between text and ids: chat template, tokenizer, and the environment's prompt template.

Prompts are rendered afresh every turn. Sampled ids are never re-tokenised: text made from them goes
to the environment, and only the ids themselves are trained on.
"""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerFast

from atod_jax.envs.base import Episode, Projection, Template

_MARK = "\u241eMESSAGE\u241e"


class Renderer:
    """One tokenizer and one prompt template.

    The chat template is rendered once around a marker: for a single user message it is a fixed
    text before and after the content, and running Jinja for every turn would cost more than the
    environment does. Tests hold it against the real template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        template: Template,
        *,
        history: int,
        longest: int | None = None,
    ):
        self.tokenizer = tokenizer
        self.longest = longest  # tokens of a prompt; None: no limit
        self.template = template
        self.history = history
        self.pad_id = pad_id(tokenizer)
        self.eos_id = eos_id(tokenizer)
        self._before, self._after = chat_text(tokenizer, _MARK).split(_MARK)

    def message(self, episode: Episode) -> str:
        """The user message for the present state of an episode."""
        return self.template.prompt(episode, self.history)

    def prompts(
        self, episodes: Sequence[Episode], contexts: Sequence[str] = ()
    ) -> list[np.ndarray]:
        """Prompt ids i32[p] of several episodes.

        A context, one per episode or none at all, goes on a line of its own before the message:
        what a teacher with privileged information reads.
        """
        messages = [self.message(e) for e in episodes]
        if contexts:
            messages = [f"{c}\n{m}" if c else m for c, m in zip(contexts, messages, strict=True)]
        texts = [self._before + m + self._after for m in messages]
        encoded = self.tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
        cut = self.longest if self.template.cut_left and self.longest else 0
        return [np.asarray(e.ids[-cut:], np.int32) for e in encoded]

    def fits(self, prompt: np.ndarray) -> bool:
        """Whether the model can read a prompt whole."""
        return self.longest is None or len(prompt) <= self.longest

    def response(self, ids: np.ndarray) -> str:
        """The text of sampled ids, special tokens left out."""
        return self.tokenizer.backend_tokenizer.decode(ids.tolist(), skip_special_tokens=True)

    def project(self, response: str, commands: Sequence[str]) -> Projection:
        """The command inside a response, and whether it counts as a valid action."""
        return self.template.project(response, commands)

    def target(self, command: str, thought: str = "") -> np.ndarray:
        """Ids i32[a] of the response a perfect model would write, with its end token."""
        text = self.template.respond(command, thought)
        ids = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        return np.asarray([*ids, self.eos_id], np.int32)


def demonstration_text(commands: Sequence[str]) -> str:
    """A demonstration as one line of context; "" for an empty one."""
    return ". ".join(commands)


def chat_text(tokenizer: PreTrainedTokenizerFast, content: str) -> str:
    """One user message through the tokenizer's chat template, thinking switched off."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    return str(text)


def load_tokenizer(path: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder.

    Raises:
      FileNotFoundError: the folder has no usable tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path)
    except Exception as error:
        raise FileNotFoundError(
            f"no tokenizer in {path!r}: expected tokenizer.json and tokenizer_config.json "
            f"({type(error).__name__}: {str(error).splitlines()[0][:120]})"
        ) from error


def pad_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """The id of padding.

    Raises:
      ValueError: the tokenizer has none.
    """
    return _required_id(tokenizer.pad_token_id, "pad_token")


def eos_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """The id that ends a turn.

    Raises:
      ValueError: the tokenizer has none.
    """
    return _required_id(tokenizer.eos_token_id, "eos_token")


def _required_id(value: object, name: str) -> int:
    if not isinstance(value, int):
        raise ValueError(f"the tokenizer has no {name}; add it to tokenizer_config.json")
    return value
