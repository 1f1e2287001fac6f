"""A tokenizer's chat template around one user message, and text that holds no control tokens."""

import contextlib
import copy
import queue
import re
import resource
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from tokenizers import Encoding, Tokenizer
from tokenizers.pre_tokenizers import PreTokenizer
from transformers import PreTrainedTokenizerFast

from atod_jax.episodes.tokens import is_text

OPEN, CLOSE = "<think>", "</think>"
_MARK = "\u241eMESSAGE\u241e"
_PROBE = "aZ <&> 'b' \"c\"\n\n" + "d " * 1000  # what a template that changes text would change
_SECONDS = 20.0  # that a template may take
_MEMORY = 2**30  # bytes, likewise
_LONGEST_TEMPLATE = 100_000  # characters that it may write around a message
# A prompt must not depend on the day it is made on; Llama's templates name this one themselves
# where they know no other.
_DAY = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"
_PLAIN = "{% for message in messages %}{{ message['content'] + '\\n' }}{% endfor %}"


class Chat(NamedTuple):
    """What a chat template writes around one user message."""

    before: str
    after: str  # up to where the answer begins
    trims: bool  # blanks around the message are taken off
    opened: str  # the tail of `after` in which thinking has begun, "" where it has not


def ensure_template(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    """Gives a tokenizer without a chat template, as of a base model, one of plain text: the message
    and a line break, behind the token that begins a text where the tokenizer puts one there.

    Args:
      tokenizer: of the model; exports carry what it is given.
      name: of the model, for messages.
    """
    if tokenizer.chat_template is not None:
        return
    begins = tokenizer.bos_token_id in tokenizer.backend_tokenizer.encode("a").ids[:1]
    tokenizer.chat_template = "{{ bos_token }}" * begins + _PLAIN
    print(
        f"{name}: has no chat template, so a prompt is its message and a line break; a "
        "chat_template.jinja in the folder, such as that of the teacher, takes its place",
        file=sys.stderr,
    )


def chat_text(tokenizer: PreTrainedTokenizerFast, content: str, *, thinking: bool = False) -> str:
    """One user message through the tokenizer's chat template.

    Raises:
      ValueError: there is no template, or it raises.
    """

    def render() -> Any:
        template = tokenizer.get_chat_template()
        if ("operator", "**") in {token[1:] for token in jinja2.Environment().lex(template)}:
            raise ValueError("it raises numbers to powers, which nothing can interrupt")
        return tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=(_DAY if "strftime_now" in template else "") + template,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=thinking,
            thinking=thinking,  # what some families call it
        )

    try:
        with _little_memory():
            text = str(_in_time(render))
        if len(text) - len(content) > _LONGEST_TEMPLATE:
            raise ValueError(f"it writes {len(text)} characters, more than {_LONGEST_TEMPLATE}")
    except Exception as error:  # Jinja's, the template's own, or none is there
        reason = (str(error).splitlines() or [""])[0][:160]
        raise ValueError(
            f"{_name(tokenizer)} cannot be used ({type(error).__name__}: {reason}); put one that "
            "takes a user message alone into chat_template.jinja"
        ) from error
    return text


@contextlib.contextmanager
def _little_memory() -> Iterator[None]:
    """No more than _MEMORY bytes above those in use, where the system says and limits them."""
    in_use = Path("/proc/self/statm")
    if not in_use.is_file():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = int(in_use.read_text().split()[0]) * resource.getpagesize() + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most if soft < 0 else min(soft, most), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _in_time(render: Callable[[], Any]) -> Any:
    """What `render` returns or raises; a template may have loops that do not end.

    Raises:
      TimeoutError: it goes on for longer than _SECONDS.
    """
    ended: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            ended.put((render(), None))
        except Exception as error:
            ended.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        result, error = ended.get(timeout=_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"it does not end within {_SECONDS:g} s") from None
    if error is not None:
        raise error
    return result


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
    message = f"{_MARK}{_PROBE}{_MARK}"
    written = chat_text(tokenizer, f" \n{message}\n ", thinking=thinking)
    kept, trimmed = (text.replace(_MARK, m) for m in (f" \n{message}\n ", message))
    if written not in (kept, trimmed):
        raise ValueError(
            f"{name} changes the message, or what it writes around it; correct it in "
            "chat_template.jinja"
        )
    _, found, tail = after.rpartition(OPEN)
    opened = found + tail if found and CLOSE not in tail else ""
    if thinking and not opened and text == chat_text(tokenizer, _MARK, thinking=False):
        raise ValueError(
            f"env.thinking=True: {name} has no switch for thinking; set env.thinking=False"
        )
    return Chat(before, after, written == trimmed, opened)


def warn_other_chat(
    student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast, name: str
) -> None:
    """Says so where a teacher, which reads the student's prompts, has another chat template.

    Args:
      student: whose template writes the prompts.
      teacher: whose template is not used, and may be of any kind.
      name: of the teacher, for messages.
    """
    ours = chat_text(student, _MARK)
    with contextlib.suppress(ValueError):
        if chat_text(teacher, _MARK) != ours:
            print(
                f"{name}: its chat template writes other text around a message than the student's, "
                "whose prompts it reads, which it may find unusual; the same chat_template.jinja "
                "in both folders ends that",
                file=sys.stderr,
            )


def _name(tokenizer: PreTrainedTokenizerFast) -> str:
    return f"the chat template of {tokenizer.name_or_path or 'the tokenizer'}"


class PlainText:
    """A tokenizer that makes no control token of any text.

    It is the model of another one without its added tokens, special or not. Only those that are
    text stay.

    Args:
      backend: of a fast tokenizer.
      starts: what is encoded begins the model's input; else no blank is put before it.
    """

    def __init__(self, backend: Tokenizer, *, starts: bool = False):
        added = backend.get_added_tokens_decoder()
        text = {i: t for i, t in added.items() if is_text(t)}
        self._tokenizer = Tokenizer(backend.model)
        self._tokenizer.normalizer = backend.normalizer
        self._tokenizer.pre_tokenizer = backend.pre_tokenizer
        if backend.pre_tokenizer is not None and not starts:
            self._tokenizer.pre_tokenizer = _continued(backend.pre_tokenizer)
        self._tokenizer.add_tokens(list(text.values()))
        numbers = [(self._tokenizer.token_to_id(t.content), i) for i, t in text.items()]
        self._renumbered = [(here, there) for here, there in numbers if here != there]
        self._control = np.zeros(max(added, default=0) + 2, bool)
        self._control[[i for i in added if i not in text]] = True

    def is_control(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Which of the ids [n] no text must become, bool[n]."""
        last = len(self._control) - 1  # stands for all ids behind the added tokens
        return self._control[np.minimum(np.asarray(ids, np.int64), last)]

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids i32[n] of each text."""
        encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [self._ids(text, e) for text, e in zip(texts, encoded, strict=True)]

    def _ids(self, text: str, encoding: Encoding) -> np.ndarray:
        """The ids of an encoding. A model may have a control token in its own vocabulary, as those
        of unigrams do; then the text is encoded in two parts that divide the token."""
        drawn = np.asarray(encoding.ids, np.int32)
        ids = drawn.copy()
        for here, there in self._renumbered:
            ids[drawn == here] = there
        found = np.flatnonzero(self.is_control(ids))
        if not len(found):
            return ids
        start, end = encoding.offsets[found[0]]
        if end - start < 2:  # a character that a normaliser makes a control token of
            return ids[~self.is_control(ids)]
        cut = (start + end) // 2
        return np.concatenate(self.encode([text[:cut], text[cut:]]))


def _continued(pre_tokenizer: PreTokenizer) -> PreTokenizer:
    """The same for text that does not begin the input."""
    changed = copy.deepcopy(pre_tokenizer)
    state = changed.__getstate__()
    changed.__setstate__(state.replace(b'"prepend_scheme":"first"', b'"prepend_scheme":"never"'))
    return changed


class Framed:
    """Messages as prompts: the ids of a chat template around text that holds no control tokens.

    The template's text between its last control token and the message is encoded together with it,
    so that harmless messages get the very ids of the whole template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, chat: Chat):
        backend = tokenizer.backend_tokenizer
        added = backend.get_added_tokens_decoder().items()
        self._tags = {t.content: i for i, t in added if t.content in (OPEN, CLOSE)}
        self._plain = plain = PlainText(backend)
        before = backend.encode(chat.before, add_special_tokens=False)
        after = backend.encode(chat.after, add_special_tokens=False)
        controls = np.flatnonzero(plain.is_control(before.ids))
        begun = int(controls[-1]) + 1 if len(controls) else 0
        self._head = np.asarray(before.ids[:begun], np.int32)
        self._lead = chat.before[before.offsets[begun - 1][1] if begun else 0 :]
        # without a head the message is where the model's input begins
        self._first = plain if begun else PlainText(backend, starts=True)
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
        apart = ending if self._tags else ""
        bodies = [self._lead + message.removesuffix(apart) for message in messages]
        ends = [apart * message.endswith(apart) + self._follow for message in messages]
        if apart:
            encoded = self._first.encode(bodies)
            encoded = [np.append(x, self.tagged(e)) for x, e in zip(encoded, ends, strict=True)]
        else:
            encoded = self._first.encode([b + e for b, e in zip(bodies, ends, strict=True)])
        return [np.concatenate([self._head, ids, self._tail]) for ids in encoded]

    def tagged(self, text: str) -> np.ndarray:
        """The ids i32[n] of text in which thinking tags are the tokens of that name, if any."""
        parts = re.split(f"({OPEN}|{CLOSE})", text) if self._tags else [text]
        plain = iter(self._plain.encode([part for part in parts if part not in self._tags]))
        ids = [[self._tags[p]] if p in self._tags else next(plain) for p in parts]
        return np.concatenate(ids).astype(np.int32)
