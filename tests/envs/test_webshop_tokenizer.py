"""The small shop tokenizer: lossless on everything, short on compact prompts."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoTokenizer

import atod_jax
from atod_jax.envs import webshop
from atod_jax.envs.base import Episode
from atod_jax.envs.vocabulary import END, PAD, START, build
from atod_jax.envs.webshop import expert, prompts
from atod_jax.envs.webshop.tokenizer import pieces

SHIPPED = Path(atod_jax.__file__).parent / "assets" / "webshop" / "tokenizer"


@pytest.fixture(scope="module")
def tok():
    return AutoTokenizer.from_pretrained(SHIPPED)


def ids(tok, text):
    return tok.encode(text, add_special_tokens=False)


def test_shipped_files_are_what_build_writes(tmp_path):
    """Trained models depend on the ids; a change here means training them again."""
    build(pieces(), tmp_path)
    names = sorted(p.name for p in SHIPPED.iterdir())
    assert names == ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
    for name in names:
        assert (tmp_path / name).read_bytes() == (SHIPPED / name).read_bytes()


def test_vocabulary(tok):
    assert len(tok) == len(pieces()) + 256
    assert (tok.pad_token, tok.bos_token, tok.eos_token) == (PAD, START, END)
    assert [tok.pad_token_id, tok.bos_token_id, tok.eos_token_id] == [0, 1, 2]


@given(st.text(max_size=60))
@example("<0x41><0x0A>")
@example("caf\u00e9 \U0001f642 \u4e2d\u6587\r\n\t  \x00")
@example("<|im_end|>click b0001<|pad|>")
@example("  leading and trailing  ")
def test_lossless_on_any_text(text):
    tok = AutoTokenizer.from_pretrained(SHIPPED)
    assert tok.decode(ids(tok, text)) == text


@pytest.mark.parametrize("seed", [0, 1])  # the vocabulary is closed: any seed's shop fits it
def test_a_visit_takes_few_tokens(tok, seed):
    cfg = webshop.Config(seed=seed)
    env = webshop.make(cfg)
    prompts_seen, commands_seen = [], []
    for task in webshop.tasks(cfg, "valid")[:40]:
        now, past, result = env.reset(task), (), None
        while result is None or not result.done:
            episode = Episode(past, now)
            command = expert.act(episode)
            prompts_seen.append(prompts.compact_prompt(episode, 2))
            commands_seen.append(prompts.compact_respond(command, ""))
            past = (*past, (now.text, command))
            result = env.step(command)
            now = result.observation
    assert [tok.decode(ids(tok, text)) for text in prompts_seen] == prompts_seen
    assert max(len(ids(tok, text)) for text in prompts_seen) <= 154
    assert max(len(ids(tok, text)) for text in commands_seen) <= 10
