"""Text to index terms, as Lucene's English analyser does it.

Words by the Unicode word-break rules (UAX 29), pictographs as words of their own, the possessive 's
dropped, lower case, 33 stop words left out, Porter stems.
"""

import functools

import regex

from atod_jax.envs.bm25 import STOP_WORDS
from atod_jax.envs.webshop.porter import stem

MAX_TOKEN = 255  # longer words are cut into pieces of this length

_REST = r"[\p{WB=Format}\p{WB=Extend}\p{WB=ZWJ}]*"
# A colon joins letters in the Unicode version Lucene follows; newer tables dropped it.
_LETTER = rf"(?:[\p{{WB=ALetter}}\p{{WB=Hebrew_Letter}}]{_REST})"
_NUMERIC = rf"(?:[\p{{WB=Numeric}}\uFF10-\uFF19]{_REST})"
_KATAKANA = rf"(?:\p{{WB=Katakana}}{_REST})"
_MID_LETTER = rf"(?:[:\p{{WB=MidLetter}}\p{{WB=MidNumLet}}']{_REST})"
_MID_NUMERIC = rf"(?:[\p{{WB=MidNum}}\p{{WB=MidNumLet}}']{_REST})"
_JOINER = rf"(?:\p{{WB=ExtendNumLet}}{_REST})"

_NUMBER = rf"{_NUMERIC}(?:(?:{_JOINER}*|{_MID_NUMERIC}){_NUMERIC})*"
_LETTERS = rf"{_LETTER}(?:(?:{_JOINER}*|{_MID_LETTER}){_LETTER})*"
_RUN = rf"(?:{_KATAKANA}(?:{_JOINER}*{_KATAKANA})*|(?:{_NUMBER}|{_LETTERS})+)"
_WORD = rf"{_JOINER}*{_RUN}(?:{_JOINER}+{_RUN})*{_JOINER}*"

# Extended_Pictographic of Unicode 12.1, the version Lucene follows; newer tables are narrower.
_PICTOGRAPHS = (
    r"\u00A9\u00AE\u203C\u2049\u2122\u2139\u2194-\u2199\u21A9\u21AA\u231A\u231B\u2328\u2388\u23CF"
    r"\u23E9-\u23F3\u23F8-\u23FA\u24C2\u25AA\u25AB\u25B6\u25C0\u25FB-\u25FE\u2600-\u2605"
    r"\u2607-\u2612\u2614-\u2685\u2690-\u2705\u2708-\u2712\u2714\u2716\u271D\u2721\u2728\u2733\u2734"
    r"\u2744\u2747\u274C\u274E\u2753-\u2755\u2757\u2763-\u2767\u2795-\u2797\u27A1\u27B0\u27BF"
    r"\u2934\u2935\u2B05-\u2B07\u2B1B\u2B1C\u2B50\u2B55\u3030\u303D\u3297\u3299"
    r"\U0001F000-\U0001F0FF\U0001F10D-\U0001F10F\U0001F12F\U0001F16C-\U0001F171\U0001F17E\U0001F17F"
    r"\U0001F18E\U0001F191-\U0001F19A\U0001F1AD-\U0001F1E5\U0001F201-\U0001F20F\U0001F21A\U0001F22F"
    r"\U0001F232-\U0001F23A\U0001F23C-\U0001F23F\U0001F249-\U0001F53D\U0001F546-\U0001F64F"
    r"\U0001F680-\U0001F6FF\U0001F774-\U0001F77F\U0001F7D5-\U0001F7FF\U0001F80C-\U0001F80F"
    r"\U0001F848-\U0001F84F\U0001F85A-\U0001F85F\U0001F888-\U0001F88F\U0001F8AE-\U0001F8FF"
    r"\U0001F90C-\U0001F93A\U0001F93C-\U0001F945\U0001F947-\U0001FFFD"
)
_PICTURE = rf"(?:[{_PICTOGRAPHS}]\uFE0F?\p{{Emoji_Modifier}}?)"
_EMOJI = (
    rf"(?:[0-9#*]\uFE0F?\u20E3|\p{{RI}}{_REST}\p{{RI}}{_REST}"
    rf"|{_PICTURE}(?:\u200D{_PICTURE})*{_REST})"
)
_SINGLE = rf"[\p{{Script=Han}}\p{{Script=Hiragana}}]{_REST}"
_COMPLEX = rf"(?:\p{{LB=Complex_Context}}{_REST})+"
_TOKEN = regex.compile(rf"{_EMOJI}|{_WORD}|{_SINGLE}|{_COMPLEX}", regex.V1)


def words(text: str) -> list[str]:
    """The words of a text in order, unchanged, at most MAX_TOKEN characters each."""
    return [
        word[i : i + MAX_TOKEN]
        for word in _TOKEN.findall(text)
        for i in range(0, len(word), MAX_TOKEN)
    ]


@functools.lru_cache(maxsize=1 << 18)
def term(word: str) -> str:
    """The index term of one word; "" for a stop word."""
    if len(word) >= 2 and word[-1] in "sS" and word[-2] in "'\u2019\uff07":
        word = word[:-2]
    word = word.lower()
    return "" if word in STOP_WORDS else stem(word)


def analyse(text: str) -> list[str]:
    """The index terms of a text, in order, with repetitions."""
    return [found for found in map(term, words(text)) if found]
