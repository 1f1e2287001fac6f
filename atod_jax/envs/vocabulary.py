"""Small tokenizers of closed vocabularies: fewest pieces, and lossless on any text.

A Unigram model in which every piece scores the same finds the segmentation with the fewest pieces.
Everything that is no piece falls back to bytes, so no text is ever lost. A word is a piece with its
leading space, wherever it stands, which is what lets a tiny model copy it.
"""

import argparse
import pathlib
import string
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
MODEL_MAX_LENGTH = 4096

# The role is not printed: user and assistant take turns. `enable_thinking` is accepted and ignored.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['content'] + '<|im_end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>' -}}{%- endif -%}"
)

_PIECE_SCORE = -1.0
# Far below any run of characters, so that a literal "<0x41>" in a text stays six characters.
_BYTE_SCORE = -100.0
CHARACTERS = ("\n", "\t", *(c for c in string.printable if c.isprintable()))


def make_tokenizer(pieces: Sequence[str]) -> "PreTrainedTokenizerFast":
    """A tokenizer with these pieces in id order; END is the end-of-sequence token.

    `pieces` begins with PAD, START, END and holds CHARACTERS; the byte tokens come after it.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models  # slow to import
    from transformers import PreTrainedTokenizerFast

    scored = [(piece, _PIECE_SCORE) for piece in pieces]
    scored += [(f"<0x{byte:02X}>", _BYTE_SCORE) for byte in range(256)]
    # Byte fallback covers every unknown character, so the "unknown" id 0 is never produced.
    inner = Tokenizer(models.Unigram(scored, unk_id=0, byte_fallback=True))
    inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    inner.add_special_tokens([AddedToken(t, normalized=False) for t in (PAD, START, END)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=MODEL_MAX_LENGTH,
        chat_template=CHAT_TEMPLATE,
    )


def build(pieces: Sequence[str], out_dir: str | pathlib.Path) -> None:
    """Writes the tokenizer as a Hugging Face folder for `AutoTokenizer.from_pretrained`."""
    make_tokenizer(pieces).save_pretrained(str(out_dir))


def main(pieces: Sequence[str]) -> None:
    """Command line: `--out DIR` names the folder to write."""
    parser = argparse.ArgumentParser(description="Writes the tokenizer of the built-in models.")
    parser.add_argument("--out", required=True, help="folder to write")
    build(pieces, parser.parse_args().out)
