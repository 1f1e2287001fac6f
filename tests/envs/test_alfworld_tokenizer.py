"""The small tokenizer: lossless on everything, short on engine text, loadable as a plain folder."""

import json
import lzma
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoTokenizer

import atod_jax
from atod_jax.envs.alfworld import expert, generate, prompts
from atod_jax.envs.alfworld.engine import Engine
from atod_jax.envs.alfworld.furniture import ITEM_NAMES, RECEPTACLE_NAMES
from atod_jax.envs.alfworld.tokenizer import pieces
from atod_jax.envs.base import Episode, Observation
from atod_jax.envs.vocabulary import END, PAD, START, build

SHIPPED = Path(atod_jax.__file__).parent / "assets" / "household" / "tokenizer"


@pytest.fixture(scope="module")
def tok():
    return AutoTokenizer.from_pretrained(SHIPPED)


def ids(tok, text):
    return tok.encode(text, add_special_tokens=False)


def split(tok, text):
    return [tok.decode([i]) for i in ids(tok, text)]


@pytest.fixture(scope="module")
def turns():
    """(episode, expert command) of 60 generated games."""
    found = []
    for index in range(60):
        engine, past = Engine(generate.generate("train", index)), ()
        text, commands = engine.reset()
        for command in generate.generate("train", index).plan:
            found.append((Episode(past, Observation(text, commands)), command))
            past = (*past, (text, command))
            text, commands, _ = engine.step(command)
    return found


def test_shipped_files_are_what_build_writes(tmp_path):
    """Trained models depend on the ids; a change here means training them again."""
    build(pieces(), tmp_path)
    names = sorted(p.name for p in SHIPPED.iterdir())
    assert names == ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
    for name in names:
        assert (tmp_path / name).read_bytes() == (SHIPPED / name).read_bytes()


def test_vocabulary(tok):
    assert len(tok) == len(pieces()) + 256 == 688
    assert (tok.pad_token, tok.bos_token, tok.eos_token) == (PAD, START, END)
    assert [tok.pad_token_id, tok.bos_token_id, tok.eos_token_id] == [0, 1, 2]


@given(st.text(max_size=60))
@example("<0x41><0x0A>")
@example("caf\u00e9 \U0001f642 \u4e2d\u6587\r\n\t  \x00")
@example("<|im_end|>go to fridge 1<|pad|>")
@example("  leading and trailing  ")
def test_lossless_on_any_text(text):
    tok = AutoTokenizer.from_pretrained(SHIPPED)
    assert tok.decode(ids(tok, text)) == text


def test_lossless_and_short_on_recorded_engine_text(tok, data_dir):
    with lzma.open(data_dir / "alfworld" / "engine_expert.jsonl.xz", "rt") as lines:
        texts = [step["obs"] for line in lines for step in json.loads(line)["steps"]]
    encoded = [ids(tok, text) for text in texts]
    assert [tok.decode(e) for e in encoded] == texts
    pieces_per_word = sum(map(len, encoded)) / sum(len(text.split()) for text in texts)
    assert pieces_per_word < 0.8


def test_lossless_on_prompts_of_both_templates(tok, turns):
    for episode, command in turns:
        thought = expert.thought(episode, command)
        for template in prompts.TEMPLATES.values():
            for text in (template.prompt(episode, 2), template.respond(command, thought)):
                assert tok.decode(ids(tok, text)) == text


def test_no_byte_or_letter_pieces_in_compact_text(tok, turns):
    """Every word of the compact prompt, of thoughts and of commands is a piece of its own."""
    for episode, command in turns:
        response = prompts.compact_respond(command, expert.thought(episode, command))
        for text in (prompts.compact_prompt(episode, 2), response):
            letters = [p for p in split(tok, text) if len(p) == 1 and p not in ":.,\n"]
            assert not letters, (letters, text)


def test_names_are_one_piece_everywhere(tok):
    for name in (*RECEPTACLE_NAMES, *ITEM_NAMES):
        (piece,) = ids(tok, f" {name}")
        sentences = (
            f"go to {name}",
            f"room: {name} bed 1",
            f"at {name} hold nothing",
            f"You arrive at {name}. On the {name}, you see a {name}, and a {name}.",
        )
        for sentence in sentences:
            assert ids(tok, sentence).count(piece) == sentence.count(name)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("go to drawer 3", ["go to", " drawer 3"]),
        ("take mug 1 from shelf 2", ["take", " mug 1", " from", " shelf 2"]),
        ("move mug 1 to shelf 2", ["move", " mug 1", " to", " shelf 2"]),
        ("heat mug 2 with microwave 1", ["heat", " mug 2", " with", " microwave 1"]),
        ("use desklamp 1", ["use", " desklamp 1"]),
        ("inventory", ["inventory"]),
    ],
)
def test_command_pieces(tok, command, expected):
    assert split(tok, command) == expected


def test_every_admissible_command_fits_six_tokens(tok, turns):
    commands = {c for episode, _ in turns for c in episode.current.commands}
    assert max(len(ids(tok, c)) for c in commands) + 1 <= 6


def test_lengths_of_prompts_and_turns(tok, turns):
    """30 to 36 prompt tokens on average, at most 64; thoughts of 12 to 18 on average."""
    lengths, thoughts = [], []
    for episode, command in turns:
        lengths.append(len(chat(tok, prompts.compact_prompt(episode, 2))))
        thoughts.append(len(ids(tok, expert.thought(episode, command))))
    assert 30 < sum(lengths) / len(lengths) < 36
    assert max(lengths) < 64
    assert 12 < sum(thoughts) / len(thoughts) < 18
    assert min(thoughts) >= 8
    assert max(thoughts) <= 22


def chat(tok, content, **kwargs):
    text = tok.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True, **kwargs
    )
    return ids(tok, text)


@pytest.mark.parametrize("thinking", [True, False])
def test_chat_template_adds_three_tokens(tok, thinking):
    content = "task: put a mug in shelf"
    ours = chat(tok, content, enable_thinking=thinking)
    assert ours == [1, *ids(tok, content), 2, 1]


def test_chat_template_extends_to_the_answer(tok):
    """Prompt ids + response ids + end token are the ids of the whole conversation."""
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "look"}]
    whole = tok.apply_chat_template(talk, tokenize=False)
    assert ids(tok, whole) == [*chat(tok, "hi"), *ids(tok, "look"), tok.eos_token_id]
    assert tok.decode(ids(tok, whole), skip_special_tokens=True) == "hilook"
