"""Between text and ids: chat template, tokenizer, and the environment's prompt template.

Prompts are rendered afresh every turn. Sampled ids are never re-tokenised: text made from them goes
to the environment, and only the ids themselves are trained on.
"""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerFast

from atod_jax import texts
from atod_jax.envs.base import Episode, Projection, Template
from atod_jax.episodes.chat import CLOSE, OPEN, Framed, chat_of
from atod_jax.episodes.tokens import Tokens, is_text
from atod_jax.records import Speller

_CHARACTERS = 256  # no token stands for more


class Renderer:
    """One tokenizer and one prompt template.

    Control tokens come from the chat template alone, whatever the text of an environment holds.
    """

    def __init__(
        self,
        tokens: Tokens,
        template: Template,
        *,
        history: int,
        longest: int | None = None,
        thinking: bool = False,
    ):
        self.tokens = tokens
        self.longest = longest  # tokens of a prompt; None: no limit
        self.template = template
        self.history = history
        chat = chat_of(tokens.tokenizer, thinking=thinking)
        self._opened = chat.opened  # thinking that the prompt has begun for the answer
        self._framed = Framed(tokens.tokenizer, chat)
        special = tokens.tokenizer.backend_tokenizer.get_added_tokens_decoder().items()
        said = {i for i, t in special if is_text(t) or t.content in (OPEN, CLOSE)}
        self._unsaid = {i for i, t in special if t.special} - said

    def message(self, episode: Episode) -> str:
        """The user message for the present state of an episode, without control characters.

        It is bounded: a message that is cut here is too long for the model in any case.
        """
        message = texts.plain(self.template.prompt(episode, self.history))
        most = len(message) if self.longest is None else _CHARACTERS * self.longest
        return message[max(0, len(message) - most) :] if self.template.cut_left else message[:most]

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
        cut = self.longest if self.template.cut_left and self.longest else 0
        return [ids[-cut:] for ids in self._framed.prompts(messages, self.template.instructions)]

    def fits(self, prompt: np.ndarray) -> bool:
        """Whether the model can read a prompt whole."""
        return self.longest is None or len(prompt) <= self.longest

    def shortened(self, prompt: np.ndarray) -> bool:
        """Whether a prompt has lost its beginning, or has just the length of those that have."""
        return self.template.cut_left and len(prompt) == self.longest

    def _ended(self, ids: np.ndarray) -> bool:
        """Whether an action has its end token."""
        return len(ids) > 0 and int(ids[-1]) in self.tokens.ends

    def response(self, ids: np.ndarray) -> str:
        """The text of sampled ids without end and special tokens, thinking tags left in.

        Where the chat template has begun the thinking, so does the response.
        """
        kept = ids[:-1] if self._ended(ids) else ids
        said = [i for i in kept.tolist() if i not in self._unsaid]
        backend = self.tokens.tokenizer.backend_tokenizer
        return self._opened + backend.decode(said, skip_special_tokens=False)

    @property
    def speller(self) -> Speller:
        """What ids say, control tokens included."""
        return speller_of(self.tokens)

    def project(self, response: str, commands: Sequence[str]) -> Projection:
        """The command inside a response, and whether it counts as a valid action."""
        return self.template.project(response, commands)

    def target(self, command: str, thought: str = "") -> np.ndarray:
        """Ids i32[a] of the response a perfect model would write, with its end token."""
        text = self.template.respond(command, thought)
        if self._opened:
            text = text.removeprefix(OPEN) if text.startswith(OPEN) else f"{CLOSE}\n\n{text}"
        return np.append(self._framed.tagged(text), np.int32(self.tokens.end))


def speller_of(tokens: Tokens) -> Speller:
    """What ids say, control tokens included."""
    backend = tokens.tokenizer.backend_tokenizer

    def text(ids: np.ndarray) -> str:
        return backend.decode(ids.tolist(), skip_special_tokens=False)

    def pieces(ids: np.ndarray) -> list[str]:
        alone = backend.decode_batch([[i] for i in ids.tolist()], skip_special_tokens=False)
        if "".join(alone) == text(ids):
            return alone
        # where spaces belong to the neighbour: what a token adds to those before it
        whole = [text(ids[max(0, i - 3) : i + 1]) for i in range(len(ids))]
        before = [text(ids[max(0, i - 3) : i]) for i in range(len(ids))]
        return [
            now.removeprefix(past) if now.startswith(past) else one
            for now, past, one in zip(whole, before, alone, strict=True)
        ]

    return Speller(text, pieces)


def demonstration_text(commands: Sequence[str]) -> str:
    """A demonstration as one line of context; "" for an empty one."""
    return ". ".join(commands)


def load_tokenizer(path: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder.

    What its file says of cutting and filling texts is left out: it is of the batches that it was
    last used for.

    Raises:
      FileNotFoundError: the folder has no usable tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        if not tokenizer.is_fast:
            raise ValueError(f"{type(tokenizer).__name__} has no fast form")
    except Exception as error:
        raise FileNotFoundError(
            f"no tokenizer in {path!r}: expected tokenizer.json and tokenizer_config.json "
            f"({type(error).__name__}: {str(error).splitlines()[0][:120]})"
        ) from error
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    return tokenizer
