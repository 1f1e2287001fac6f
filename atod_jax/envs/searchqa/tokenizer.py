"""The small tokenizer of the built-in models for generated questions.

Pieces are the fixed parts of questions and passages, the words of names, and single characters.

    python -m atod_jax.envs.searchqa.tokenizer --out DIR
"""

import re
from collections.abc import Iterable

from atod_jax.envs import vocabulary
from atod_jax.envs.searchqa.generate import RELATIONS, SENTENCES, WORDS
from atod_jax.envs.vocabulary import CHARACTERS, END, PAD, START

_TAGS = "<think>|</think>|<search>|</search>|<answer>|</answer>"
_COMPACT = "question:|\nsearch|\nanswer|\nnothing|search|answer|\n-|about"
_THOUGHTS = "look for|. look for|. that answers it|that answers it| is|try search|try answer"


def pieces() -> tuple[str, ...]:
    """All pieces of the vocabulary in id order, the byte tokens excluded."""
    groups: Iterable[Iterable[str]] = (
        (PAD, START, END),
        _TAGS.split("|"),
        CHARACTERS,
        (f" {word}" for words in WORDS.values() for word in " ".join(words).split()),
        _COMPACT.split("|"),
        _THOUGHTS.split("|"),
        _fixed_parts(),
    )
    return tuple(dict.fromkeys(piece for group in groups for piece in group if piece))


def _fixed_parts() -> list[str]:
    """What stands between the names of questions, phrases and passages, with its leading space."""
    texts = [f" {text}" for r in RELATIONS for text in (r.question, r.phrase)]
    texts += [r.phrase for r in RELATIONS] + [f" {text}" for text in SENTENCES.values()]
    return [part.rstrip() for text in texts for part in re.split(r"\{\w+\}", text)]


if __name__ == "__main__":
    vocabulary.main(pieces())
