"""The renderer: equal to the tokenizer's own chat template, and token-exact both ways."""

import numpy as np
import pytest

from atod_jax.envs.alfworld import TEMPLATES
from atod_jax.envs.base import Episode, Observation, Template
from atod_jax.episodes.chat import chat_text
from atod_jax.episodes.render import Renderer, demonstration_text, load_tokenizer
from atod_jax.run.models import ASSETS, load_tokens

TOKENS = load_tokens(ASSETS / "household" / "tokenizer")
TOKENIZER = TOKENS.tokenizer
OPENING = (
    "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly "
    "around you, you see a cabinet 2, a cabinet 1, and a fridge 1.\n\n"
    "Your task is to: put a mug in cabinet."
)
EPISODES = [
    Episode(past=(), current=Observation(OPENING, ("go to fridge 1", "look"))),
    Episode(
        past=((OPENING, "go to fridge 1"),),
        current=Observation("You arrive at fridge 1. The fridge 1 is closed.", ("open fridge 1",)),
    ),
]


@pytest.mark.parametrize("template", ["paper", "compact"])
def test_prompts_equal_the_chat_template_applied_in_full(template):
    renderer = Renderer(TOKENS, TEMPLATES[template], history=2)
    for episode, ids in zip(EPISODES, renderer.prompts(EPISODES)):
        message = [{"role": "user", "content": renderer.message(episode)}]
        expected = TOKENIZER.apply_chat_template(
            message, add_generation_prompt=True, enable_thinking=False
        )
        expected = expected["input_ids"] if hasattr(expected, "keys") else expected
        assert ids.tolist() == list(expected)
        assert ids.dtype == np.int32


def test_too_long_prompts_do_not_fit_or_lose_their_beginning():
    whole = Renderer(TOKENS, TEMPLATES["compact"], history=2)
    (prompt,) = whole.prompts(EPISODES[:1])
    assert whole.fits(np.zeros(10**6, np.int32))
    strict = Renderer(TOKENS, TEMPLATES["compact"], history=2, longest=len(prompt) - 1)
    (unchanged,) = strict.prompts(EPISODES[:1])
    assert unchanged.tolist() == prompt.tolist()
    assert not strict.fits(unchanged)
    cutting = TEMPLATES["compact"]._replace(cut_left=True)
    cut = Renderer(TOKENS, cutting, history=2, longest=len(prompt) - 1).prompts(EPISODES[:1])
    assert cut[0].tolist() == prompt[1:].tolist()


@pytest.mark.parametrize("cut_left", [True, False])
def test_a_hostile_observation_is_bounded_and_holds_no_escapes(cut_left):
    episode = Episode((), Observation("\x1b[31m\ud800" * 200_000 + "end"))
    template = Template(prompt=lambda e, h: e.current.text, project=None, respond=None)
    renderer = Renderer(TOKENS, template._replace(cut_left=cut_left), history=0, longest=64)
    message = renderer.message(episode)
    assert len(message) == 64 * 256
    assert message.endswith("end") == cut_left
    assert "\x1b" not in message
    (ids,) = renderer.prompts([episode])
    assert renderer.fits(ids) == cut_left


def test_odd_content_survives_the_chat_template():
    def echo(text):
        return Template(prompt=lambda e, h: text, project=None, respond=None)

    for text in ("", "  two  spaces ", "line\n\nline", "{{ jinja }} {% raw %}", "ünï 中文 😀"):
        (ids,) = Renderer(TOKENS, echo(text), history=0).prompts(EPISODES[:1])
        expected = TOKENIZER(chat_text(TOKENIZER, text), add_special_tokens=False)["input_ids"]
        assert ids.tolist() == expected


@pytest.mark.parametrize("template", ["paper", "compact"])
def test_a_context_is_a_line_before_the_message(template):
    renderer = Renderer(TOKENS, TEMPLATES[template], history=2)
    context = demonstration_text(("go to fridge 1", "open fridge 1", "take mug 1 from fridge 1"))
    plain, told, both = (
        renderer.prompts(EPISODES, contexts) for contexts in ((), (context, context), ("", context))
    )
    for episode, ids in zip(EPISODES, told):
        text = chat_text(TOKENIZER, f"{context}\n{renderer.message(episode)}")
        assert ids.tolist() == TOKENIZER(text, add_special_tokens=False)["input_ids"]
        assert "take mug 1 from fridge 1" in TOKENIZER.decode(ids)
    assert both[0].tolist() == plain[0].tolist()
    assert both[1].tolist() == told[1].tolist()
    assert len(told[0]) - len(plain[0]) <= 20  # a few tokens per command
    alone = TOKENIZER(context, add_special_tokens=False)["input_ids"]
    assert TOKENIZER.decode(alone) == context


def test_targets_decode_to_the_command_and_end_once():
    renderer = Renderer(TOKENS, TEMPLATES["compact"], history=2)
    ids = renderer.target("take mug 1 from cabinet 2")
    assert ids[-1] == TOKENS.end
    assert (ids == TOKENS.end).sum() == 1
    assert renderer.response(ids) == "take mug 1 from cabinet 2"


def test_a_missing_tokenizer_is_one_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        load_tokenizer(str(tmp_path))
