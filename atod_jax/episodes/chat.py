"""A tokenizer's chat template around one user message, and text that holds no control tokens."""

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerFast

OPEN, CLOSE = "<think>", "</think>"
_MARK = "\u241eMESSAGE\u241e"
# A prompt must not depend on the day it is made on; Llama's templates name this one themselves
# where they know no other.
_DAY = "{%- macro strftime_now(form) -%}26 Jul 2024{%- endmacro -%}"


class Chat(NamedTuple):
    """What a chat template writes around one user message."""

    before: str
    after: str  # up to where the answer begins
    trims: bool  # blanks around the message are taken off
    opened: str  # the tail of `after` in which thinking has begun, "" where it has not


def chat_text(tokenizer: PreTrainedTokenizerFast, content: str, *, thinking: bool = False) -> str:
    """One user message through the tokenizer's chat template.

    Raises:
      ValueError: there is no template, or it raises.
    """
    try:
        template = tokenizer.get_chat_template()
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=(_DAY if "strftime_now" in template else "") + template,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=thinking,
            thinking=thinking,  # what some families call it
        )
    except Exception as error:  # Jinja's, the template's own, or none is there
        reason = (str(error).splitlines() or [""])[0][:160]
        raise ValueError(
            f"{_name(tokenizer)} cannot be used ({type(error).__name__}: {reason}); put one that "
            "takes a user message alone into chat_template.jinja"
        ) from error
    return str(text)


def chat_of(tokenizer: PreTrainedTokenizerFast, *, thinking: bool = False) -> Chat:
    """What the template writes around any message.

    It is rendered around a marker, once: for a single user message it is a fixed text before and
    after it, and Jinja would cost more than the environment does in every turn. What a template
    does to the content itself, such as cutting it at `</think>`, is therefore not done; only blanks
    around it are trimmed where the template trims them. No earlier answer is ever a message here,
    so templates that drop earlier thinking have none to drop.

    Args:
      tokenizer: of the model.
      thinking: whether the template may switch thinking on.

    Raises:
      ValueError: it cannot be used so, in one line that names it.
    """
    text, name = chat_text(tokenizer, _MARK, thinking=thinking), _name(tokenizer)
    before, *rest = text.split(_MARK)
    if len(rest) != 1:
        raise ValueError(
            f"{name} prints the user's message {len(rest)} times; correct it in chat_template.jinja"
        )
    (after,) = rest
    padded = chat_text(tokenizer, f" \n{_MARK}\n ", thinking=thinking)
    if padded not in (text, text.replace(_MARK, f" \n{_MARK}\n ")):
        raise ValueError(
            f"{name} writes something else around a message with blanks; correct it in "
            "chat_template.jinja"
        )
    _, found, tail = after.rpartition(OPEN)
    opened = found + tail if found and CLOSE not in tail else ""
    if thinking and not opened and text == chat_text(tokenizer, _MARK, thinking=False):
        raise ValueError(
            f"env.thinking=True: {name} has no switch for thinking; set env.thinking=False"
        )
    return Chat(before, after, padded == text, opened)


def _name(tokenizer: PreTrainedTokenizerFast) -> str:
    return f"the chat template of {tokenizer.name_or_path or 'the tokenizer'}"


class PlainText:
    """A tokenizer that never makes a control token out of text.

    Every added token, special or not, counts as one, but for those in `allowed` and those of blanks
    or of a single character, which are text.
    """

    def __init__(self, backend: Tokenizer, *, allowed: Sequence[str] = (), starts: bool = False):
        """Of a fast tokenizer's backend; `starts`: what is encoded begins the model's input."""
        form = json.loads(backend.to_str())
        added = form["added_tokens"]
        for token in added:
            text = token["content"]
            token["special"] = text not in allowed and len(text) > 1 and not text.isspace()
        form |= {"truncation": None, "padding": None}
        self._tokenizer = Tokenizer.from_str(json.dumps(form if starts else _continued(form)))
        self._tokenizer.encode_special_tokens = True  # as the text that they are
        controls = [token["id"] for token in added if token["special"]]
        self._control = np.zeros(max(controls, default=0) + 2, bool)
        self._control[controls] = True

    def is_control(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Which of the ids [n] text must not become, bool[n]."""
        last = len(self._control) - 1  # stands for all ids behind the controls
        return self._control[np.minimum(np.asarray(ids, np.int64), last)]

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids i32[n] of each text."""
        encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [self._checked(text, e) for text, e in zip(texts, encoded, strict=True)]

    def _checked(self, text: str, encoding: Encoding) -> np.ndarray:
        """The ids of an encoding; a model that knows a control token as a word of its vocabulary,
        as those of unigrams may, gets the text in two parts that divide it."""
        ids = np.asarray(encoding.ids, np.int32)
        found = np.flatnonzero(self.is_control(ids))
        if not len(found):
            return ids
        start, end = encoding.offsets[found[0]]
        if end - start < 2:  # a character that a normaliser makes a control token of
            return ids[~self.is_control(ids)]
        cut = (start + end) // 2
        return np.concatenate(self.encode([text[:cut], text[cut:]]))


def _continued(form: dict) -> dict:
    """A tokenizer whose text does not begin the input: no blank is put before it."""

    def walk(part: object) -> object:
        if isinstance(part, list):
            return [walk(x) for x in part]
        if not isinstance(part, dict):
            return part
        never = {"prepend_scheme": "never"} if part.get("prepend_scheme") == "first" else {}
        return {name: walk(x) for name, x in part.items()} | never

    return form | {"pre_tokenizer": walk(form["pre_tokenizer"])}


class Framed:
    """Messages as prompts: the ids of a chat template around text that holds no control tokens.

    The template's text between its last control token and the message is encoded together with it,
    so that harmless messages get the very ids of the whole template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, chat: Chat):
        backend = tokenizer.backend_tokenizer
        added = {token.content for token in backend.get_added_tokens_decoder().values()}
        self._plain = plain = PlainText(backend)
        # where thinking tags are tokens of their own, constant text may hold them
        self.tagged = PlainText(backend, allowed=(OPEN, CLOSE)) if OPEN in added else plain
        before = backend.encode(chat.before, add_special_tokens=False)
        after = backend.encode(chat.after, add_special_tokens=False)
        controls = np.flatnonzero(plain.is_control(before.ids))
        begun = int(controls[-1]) + 1 if len(controls) else 0
        self._head = np.asarray(before.ids[:begun], np.int32)
        self._lead = chat.before[before.offsets[begun - 1][1] if begun else 0 :]
        if not begun:  # the message is where the model's input begins
            self._plain = PlainText(backend, starts=True)
        ended = next(iter(np.flatnonzero(plain.is_control(after.ids))), len(after.ids))
        self._tail = np.asarray(after.ids[ended:], np.int32)
        self._follow = chat.after[: after.offsets[ended][0] if len(self._tail) else None]
        self._trims = chat.trims

    def prompts(self, messages: Sequence[str], ending: str) -> list[np.ndarray]:
        """The ids i32[p] of each message.

        Args:
          messages: what the user says, text of anybody in it.
          ending: constant text that messages may end with; its thinking tags may be tokens.
        """
        if self._trims:
            messages, ending = [message.strip() for message in messages], ending.strip()
        apart = ending if self.tagged is not self._plain else ""
        bodies = [self._lead + message.removesuffix(apart) for message in messages]
        ends = [apart * message.endswith(apart) + self._follow for message in messages]
        if apart:
            pairs = zip(self._plain.encode(bodies), self.tagged.encode(ends), strict=True)
            encoded = [np.concatenate(pair) for pair in pairs]
        else:
            encoded = self._plain.encode([b + e for b, e in zip(bodies, ends, strict=True)])
        return [np.concatenate([self._head, ids, self._tail]) for ids in encoded]
