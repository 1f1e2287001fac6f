"""Exact match: which answer a transcript gives, and whether it equals an accepted one."""

import re
import string
from collections.abc import Iterable

from atod_jax.envs.searchqa import tags

_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case without ASCII punctuation, articles and superfluous spaces."""
    bare = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLE.sub(" ", bare).split())


def exact_match(answer: str, accepted: Iterable[str]) -> bool:
    """Whether the normalised answer equals an accepted one; where nothing is left of it, never."""
    given = normalise(answer)
    return bool(given) and given in {normalise(text) for text in accepted}


def final_answer(transcript: str, *, given: int = 0) -> str | None:
    """The last answer block of a transcript, None where the player wrote none.

    Args:
      transcript: all that the player wrote, in order, joined.
      given: answer blocks that the transcript holds before the player begins, such as the
        example of a prompt; only what exceeds them counts.
    """
    found = tags.blocks("answer", transcript)
    return found[-1].strip() if len(found) > given else None
