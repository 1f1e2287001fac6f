"""The small tokenizer of the search models: lossless, short, loadable as a plain folder."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoTokenizer

import atod_jax
from atod_jax.envs import searchqa
from atod_jax.envs.base import Episode
from atod_jax.envs.searchqa import expert
from atod_jax.envs.searchqa.prompts import TEMPLATES
from atod_jax.envs.searchqa.tokenizer import pieces
from atod_jax.envs.vocabulary import build

SHIPPED = Path(atod_jax.__file__).parent / "assets" / "searchqa" / "tokenizer"


@pytest.fixture(scope="module")
def tok():
    return AutoTokenizer.from_pretrained(SHIPPED)


@pytest.fixture(scope="module")
def turns():
    """(episode, expert command) of generated questions."""
    cfg, found = searchqa.Config(), []
    env = searchqa.make(cfg)
    for task in searchqa.tasks(cfg, "train")[:100]:
        episode = Episode((), env.reset(task))
        for command in searchqa.demonstration(cfg, task, 4):
            found.append((episode, command))
            past = (*episode.past, (episode.current.text, command))
            episode = Episode(past, env.step(command).observation)
    return found


def ids(tok, text):
    return tok.encode(text, add_special_tokens=False)


def test_shipped_files_are_what_build_writes(tmp_path):
    """Trained models depend on the ids; a change here means training them again."""
    build(pieces(), tmp_path)
    names = sorted(p.name for p in SHIPPED.iterdir())
    assert names == ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
    for name in names:
        assert (tmp_path / name).read_bytes() == (SHIPPED / name).read_bytes()


def test_special_tokens_come_first(tok):
    assert [tok.pad_token_id, tok.bos_token_id, tok.eos_token_id] == [0, 1, 2]
    assert len(tok) == len(pieces()) + 256


@given(st.text(max_size=60))
@example("<0x41><search>café 中文\r\n\x00</search>")
def test_lossless_on_any_text(text):
    tok = AutoTokenizer.from_pretrained(SHIPPED)
    assert tok.decode(ids(tok, text)) == text


def test_lossless_on_prompts_of_both_templates(tok, turns):
    for episode, command in turns:
        for template in TEMPLATES.values():
            response = template.respond(command, expert.thought(episode, command))
            for text in (template.prompt(episode, 4), response):
                assert tok.decode(ids(tok, text)) == text


def test_compact_texts_have_no_letter_pieces_and_answers_are_short(tok, turns):
    compact = TEMPLATES["compact"]
    for episode, command in turns:
        told = compact.respond(command, expert.thought(episode, command))
        for text in (compact.prompt(episode, 4), told):
            assert {p for p in map(tok.decode, ids(tok, text)) if len(p) == 1} <= set(".?")
        assert len(ids(tok, compact.respond(command, ""))) == 3
