"""What the ids of a tokenizer are for: which exist, which end an action, which only fill."""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from atod_jax.texts import read_object


@dataclasses.dataclass(frozen=True)
class Tokens:
    """A tokenizer and the roles of its ids."""

    tokenizer: PreTrainedTokenizerFast
    end: int  # written behind what is taught
    ends: tuple[int, ...]  # any of them ends an action
    pad: int  # fills arrays, where nothing reads it; may be an end
    count: int  # ids are below it
    silent: tuple[int, ...]  # of those: nobody says them, since they are no token or padding alone

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast, folder: str | Path = "") -> "Tokens":
        """The roles that the tokenizer and the model's own files give its ids.

        Args:
          tokenizer: which one.
          folder: of the model; what its config.json and generation_config.json call an end is one.

        Raises:
          ValueError: nothing is an end, or what is called one is no id.
        """
        known = set(tokenizer.get_vocab().values())
        own = tokenizer.eos_token_id
        ends = dict.fromkeys([own] if isinstance(own, int) else [])
        for file, end in _listed_ends(Path(folder)) if folder else ():
            if type(end) is not int or end not in known:
                raise ValueError(
                    f"{file}: eos_token_id={end!r} is no id of the tokenizer beside it; correct it"
                )
            ends[end] = None
        if not ends:
            raise ValueError(
                f"{folder or tokenizer.name_or_path}: nothing says which token ends an answer; "
                "add eos_token to tokenizer_config.json"
            )
        first, count, pad = next(iter(ends)), max(known) + 1, tokenizer.pad_token_id
        pad = pad if isinstance(pad, int) else first
        added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
        fills = {pad} - set(ends) if pad in added and not is_text(added[pad]) else set()
        silent = set(range(count)) - known | fills
        return cls(tokenizer, first, tuple(ends), pad, count, tuple(sorted(silent)))


def _listed_ends(folder: Path) -> Iterator[tuple[Path, object]]:
    """(file, id) of the ends that a model's files list; null and a missing field list none."""
    for file in (folder / "generation_config.json", folder / "config.json"):
        if not file.is_file():
            continue
        listed = read_object(file, "restore it").get("eos_token_id")
        for end in listed if isinstance(listed, list) else [listed]:
            if end is not None:
                yield file, end


def is_text(added: AddedToken) -> bool:
    """Whether an added token is text all the same: blanks, or a character such as a padding "!"."""
    return len(added.content) < 2 or added.content.isspace()


def require_same_ids(student: Tokens, teacher: Tokens, name: str) -> None:
    """Distillation compares the same ids, so both models must mean the same by each.

    Where only the way from text to ids differs, a line says so: a student's ids are scored as they
    are, whatever the teacher's tokenizer would have made of the text.

    Args:
      student: whose ids they are.
      teacher: who judges them.
      name: of the teacher, for messages.

    Raises:
      ValueError: an id is another token, or another one ends an answer.
    """
    ours, theirs = (
        {i: word for word, i in t.tokenizer.get_vocab().items()} for t in (student, teacher)
    )
    if ours != theirs:
        i = min(i for i in ours | theirs if ours.get(i) != theirs.get(i))
        what = f"id {i} is {_said(theirs, i)} there, {_said(ours, i)} here"
        if len(ours) != len(theirs):
            raise ValueError(
                f"{name}: vocabulary of {len(theirs)} ids, the student's tokenizer has "
                f"{len(ours)} ({what}); choose a teacher of the same family"
            )
        raise ValueError(
            f"{name}: its tokenizer differs from the student's ({what}); use a teacher with the "
            "same tokenizer"
        )
    if student.end != teacher.end:
        raise ValueError(
            f"{name}: its (padding, end) ids are {(teacher.pad, teacher.end)}, the student's "
            f"{(student.pad, student.end)}, and both must end an answer alike; correct eos_token "
            "in one tokenizer_config.json"
        )
    if set(student.ends) != set(teacher.ends):
        print(
            f"{name}: answers may also end with the ids {sorted(teacher.ends)} there, "
            f"{sorted(student.ends)} here (config.json, generation_config.json); the student's end "
            "its own",
            file=sys.stderr,
        )
    forms = [json.loads(t.tokenizer.backend_tokenizer.to_str()) for t in (student, teacher)]
    parts = [part for part in ("normalizer", "pre_tokenizer") if forms[0][part] != forms[1][part]]
    parts += ["model"] * (_model(forms[0]) != _model(forms[1]))
    if parts:
        print(
            f"{name}: its {', '.join(parts)} of tokenizer.json differ from the student's, so the "
            "same text may become other ids there; the ids mean the same, and it judges those of "
            "the student, which it may find unusual",
            file=sys.stderr,
        )


def _said(words: dict[int, str], i: int) -> str:
    return repr(words[i]) if i in words else "nothing"


_AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")


def _model(form: dict) -> dict:
    """How words become ids; affixes that are null are empty ones."""
    model = form["model"]
    return model | {name: model[name] or "" for name in _AFFIXES if name in model}


def tokenizer_digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """A digest of what maps words to ids: vocabulary, algorithm, special ids."""
    form = json.loads(tokenizer.backend_tokenizer.to_str())
    special = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    text = json.dumps([_model(form), form["added_tokens"], special], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
