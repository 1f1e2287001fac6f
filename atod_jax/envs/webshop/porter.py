"""The Porter stemmer in the variant its author published as C and Java code.

It departs from the 1980 article in three points: words of one or two letters stay as they are,
`bli` becomes `ble`, and `logi` becomes `log`. Lucene's PorterStemFilter does the same; Snowball's
`porter` follows the article. Only the letters a, e, i, o, u (and y after a consonant) are vowels;
any other character counts as a consonant.
"""

import functools
from collections.abc import Callable

# Steps 2 to 4: the first suffix that fits, in this order, is the only one looked at.
_STEP2 = (
    ("ational", "ate"), ("tional", "tion"), ("enci", "ence"), ("anci", "ance"), ("izer", "ize"),
    ("bli", "ble"), ("alli", "al"), ("entli", "ent"), ("eli", "e"), ("ousli", "ous"),
    ("ization", "ize"), ("ation", "ate"), ("ator", "ate"), ("alism", "al"), ("iveness", "ive"),
    ("fulness", "ful"), ("ousness", "ous"), ("aliti", "al"), ("iviti", "ive"), ("biliti", "ble"),
    ("logi", "log"),
)  # fmt: skip
_STEP3 = (
    ("icate", "ic"), ("ative", ""), ("alize", "al"), ("iciti", "ic"), ("ical", "ic"), ("ful", ""),
    ("ness", ""),
)  # fmt: skip
_STEP4 = (
    "al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "sion",
    "tion", "ou", "ism", "ate", "iti", "ous", "ive", "ize",
)  # fmt: skip


def _kinds(word: str) -> str:
    """One letter per character: c for a consonant, v for a vowel."""
    kinds = ""
    for char in word:
        vowel = char in "aeiou" or (char == "y" and kinds.endswith("c"))
        kinds += "v" if vowel else "c"
    return kinds


def _measure(stem: str) -> int:
    """How often a vowel is followed by a consonant: the m of [C](VC)^m[V]."""
    return _kinds(stem).count("vc")


def _ends_double(word: str) -> bool:
    return len(word) > 1 and word[-1] == word[-2] and _kinds(word)[-1] == "c"


def _ends_cvc(word: str) -> bool:
    return _kinds(word).endswith("cvc") and word[-1] not in "wxy"


def _plurals(word: str) -> str:
    if word.endswith(("sses", "ies")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _past_and_progressive(word: str) -> str:
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) else word
    for suffix in ("ed", "ing"):
        stem = word.removesuffix(suffix)
        if stem != word:
            return _tidied(stem) if "v" in _kinds(stem) else word
    return word


def _tidied(stem: str) -> str:
    if stem.endswith(("at", "bl", "iz")):
        return stem + "e"
    if _ends_double(stem):
        return stem if stem[-1] in "lsz" else stem[:-1]
    return stem + "e" if _measure(stem) == 1 and _ends_cvc(stem) else stem


def _y_to_i(word: str) -> str:
    return word[:-1] + "i" if word.endswith("y") and "v" in _kinds(word[:-1]) else word


def _replaced(word: str, rules: tuple[tuple[str, str], ...]) -> str:
    for suffix, replacement in rules:
        if word.endswith(suffix):
            stem = word[: len(word) - len(suffix)]
            return stem + replacement if _measure(stem) else word
    return word


def _without_ending(word: str) -> str:
    for suffix in _STEP4:
        if word.endswith(suffix):
            # of sion and tion only "ion" goes
            stem = word[: len(word) - len(suffix)] + (suffix[0] if suffix.endswith("ion") else "")
            return stem if _measure(stem) > 1 else word
    return word


def _final_e(word: str) -> str:
    if word.endswith("e"):
        stem = word[:-1]
        if _measure(stem) > 1 or (_measure(stem) == 1 and not _ends_cvc(stem)):
            return stem
    return word


def _final_ll(word: str) -> str:
    return word[:-1] if word.endswith("ll") and _measure(word) > 1 else word


_STEPS: tuple[Callable[[str], str], ...] = (
    _plurals,
    _past_and_progressive,
    _y_to_i,
    lambda word: _replaced(word, _STEP2),
    lambda word: _replaced(word, _STEP3),
    _without_ending,
    _final_e,
    _final_ll,
)


@functools.lru_cache(maxsize=1 << 18)
def stem(word: str) -> str:
    """The stem of a lower-case word."""
    if len(word) <= 2:
        return word
    for step in _STEPS:
        word = step(word)
    return word
