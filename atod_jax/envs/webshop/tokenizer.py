"""The small tokenizer of the built-in shop models: fewest pieces, and lossless on any text.

A Unigram model in which every piece scores the same finds the segmentation with the fewest pieces.
Pieces are the names of the generated shop with their leading space, so that a tiny model can copy
them from a compact prompt into a command, and single characters; everything else falls back to
bytes.

    python -m atod_jax.envs.webshop.tokenizer --out DIR
"""

import argparse
import pathlib
import string
from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from atod_jax.envs.webshop import generate

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

_PHRASES = (
    "<think>|</think>|want:|\nas:| under| with|search|page|item:|chosen:| nothing| seen|other"
    "|click| buy now| < prev| next >| back to search| description| features| reviews"
    "|color:|size:| color| size| to"
)


def _names() -> Iterable[str]:
    """Everything the generated shop calls something, in lower case."""
    aisles = generate.AISLES
    yield from (kind for aisle in aisles for kind in aisle.kinds)
    yield from (attribute for aisle in aisles for attribute in aisle.attributes)
    yield from (value for values in generate.SIZES.values() for value in values)
    yield from generate.COLOURS
    yield from (brand.lower() for brand in generate.BRANDS)
    yield from (generate.product_id(n).lower() for n in range(generate.PRODUCTS))
    highest = generate.DEAREST + generate.SPREAD
    yield from (f"${price}.0" for price in range(generate.CHEAPEST, highest + 1))
    yield from (str(limit) for limit in range(10, generate.DEAREST + 60, 10))
    yield from map(str, range(1, 6))  # pages


def pieces() -> tuple[str, ...]:
    """All pieces of the vocabulary in id order, the byte tokens excluded."""
    characters = ("\n", "\t", *(c for c in string.printable if c.isprintable()))
    names = (f" {name}" for name in _names())
    return tuple(dict.fromkeys([PAD, START, END, *characters, *_PHRASES.split("|"), *names]))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer as a `transformers` object; END is the end-of-sequence token."""
    scored = [(piece, _PIECE_SCORE) for piece in pieces()]
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


def build(out_dir: str | pathlib.Path) -> None:
    """Writes the tokenizer as a Hugging Face folder for `AutoTokenizer.from_pretrained`."""
    make_tokenizer().save_pretrained(str(out_dir))


def main() -> None:
    """Command line: `--out DIR` names the folder to write."""
    parser = argparse.ArgumentParser(description="Writes the tokenizer of the built-in shop.")
    parser.add_argument("--out", required=True, help="folder to write")
    build(parser.parse_args().out)


if __name__ == "__main__":
    main()
