"""Chat templates as people have them, and text that never becomes a control token."""

import resource

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from atod_jax.envs.alfworld import TEMPLATES
from atod_jax.envs.base import Episode, Observation, Template
from atod_jax.episodes import chat
from atod_jax.episodes.chat import PlainText, chat_of, chat_text, ensure_template, warn_other_chat
from atod_jax.episodes.render import Renderer, load_tokenizer
from atod_jax.episodes.tokens import Tokens

CHATML = (
    "{%- for m in messages %}{{- '<|turn|>' + m.role + '\n' + m.content + '<|end|>\n' }}"
    "{% endfor %}"
    "{%- if add_generation_prompt %}{{- '<|turn|>assistant\n' }}{% endif %}"
)
HYBRID = CHATML + "{%- if not enable_thinking %}{{- '<think>\n\n</think>\n\n' }}{% endif %}"
THINKS = CHATML + "{{- '<think>\n' }}"


def make(template, *, tags=True):
    """Bytes, two control tokens and a tool tag; thinking tags are tokens with `tags`."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|turn|>"), AddedToken("<|end|>")])
    backend.add_tokens(["<tool>", *(["<think>", "</think>"] * tags)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    tokenizer.chat_template = template
    return tokenizer


def echo(*, instructions="", project=None):
    """Shows what the environment says, then the instructions."""
    return Template(
        prompt=lambda episode, history: episode.current.text + instructions,
        project=project,
        respond=lambda command, thought: f"<think>{thought}</think>{command}",
        instructions=instructions,
    )


def prompt_of(tokenizer, text, **options):
    renderer = Renderer(Tokens.of(tokenizer), echo(**options), history=0)
    (ids,) = renderer.prompts([Episode((), Observation(text))])
    return ids


# ---------------------------------------------------------------------------------- chat templates


def test_thinking_is_a_switch_where_the_template_has_one():
    assert chat_of(make(HYBRID)).after.endswith("</think>\n\n")
    on = chat_of(make(HYBRID), thinking=True)
    assert on.after.endswith("assistant\n")
    assert on.opened == chat_of(make(HYBRID)).opened == ""
    with pytest.raises(ValueError, match=r"env\.thinking=True: the chat template of .* no switch"):
        chat_of(make(CHATML), thinking=True)


@pytest.mark.parametrize("thinking", [True, False])
def test_thinking_that_the_template_has_begun_belongs_to_the_response(thinking):
    tokenizer = make(THINKS)
    seen = []
    template = echo(project=lambda response, commands: seen.append(response))
    renderer = Renderer(Tokens.of(tokenizer), template, history=0, thinking=thinking)
    (prompt,) = renderer.prompts([Episode((), Observation("look"))])
    assert tokenizer.decode(prompt).endswith("assistant\n<think>\n")
    said = tokenizer.encode("a desk</think>go<|end|>")
    response = renderer.response(np.asarray(said))
    assert response == "<think>\na desk</think>go"
    target = renderer.target("go", "a desk")
    assert target.tolist() == said
    assert renderer.response(target) == response
    # a template that teaches no thought still closes what was begun
    bare = Renderer(Tokens.of(tokenizer), TEMPLATES["compact"], history=0)
    assert tokenizer.decode(bare.target("look")) == "</think>\n\nlook<|end|>"


def test_a_template_that_trims_gets_what_it_would_print():
    trimming = make(CHATML.replace("m.content", "m.content.strip()"))
    for text in ("  look\n ", "look"):
        ids = prompt_of(trimming, text)
        assert ids.tolist() == trimming.encode(chat_text(trimming, text))
    plain = make(CHATML)
    assert prompt_of(plain, " look ").tolist() == plain.encode(chat_text(plain, " look "))


def test_a_message_that_quotes_thinking_is_kept_whole():
    """Templates drop earlier thinking by cutting a message at the closing tag."""
    cutting = make(CHATML.replace("m.content", "m.content.split('</think>')[-1]"), tags=False)
    text = "inside <think> </think>. Then act."
    assert "inside" not in chat_text(cutting, text)
    assert text in cutting.decode(prompt_of(cutting, text))


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (CHATML + "{{ messages[0].content }}", "prints the user's message 2 times"),
        (CHATML.replace("m.content", "'x'"), "prints the user's message 0 times"),
        ("{{ raise_exception('system role\nfirst') }}", r"TemplateError: system role\); put one"),
        ("{{ messages[1].content }}", "cannot be used"),
        (CHATML + "{{ messages[0].content | length }}", "what it writes around it"),
        (CHATML.replace("m.content", "m.content.upper()"), "changes the message"),
        (CHATML.replace("m.content", "(m.content | e)"), "changes the message"),
        (CHATML.replace("m.content", "m.content[:400]"), "changes the message"),
        (CHATML.replace("m.content", "m.content.split('\n')[0]"), "changes the message"),
        (None, "cannot be used"),
    ],
)
def test_templates_that_cannot_be_used_are_refused_by_name(template, problem):
    tokenizer = make(template)
    tokenizer.name_or_path = "some/folder"
    with pytest.raises(ValueError, match=f"the chat template of some/folder .*{problem}") as error:
        chat_of(tokenizer)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (
            "{% for a in range(300) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            r"cannot be used \(TimeoutError: it does not end within 0\.2 s\)",
        ),
        (
            "{{ messages[0].content + 'a' * 200000 }}",
            "it writes 2000.. characters, more than 100000",
        ),
        ("{{ 'x' * 3000000000 }}", "MemoryError"),
        ("{{ '%3000000000d' % 1 }}", "MemoryError"),
        ("{{ 9 ** 9 ** 9 }}", "it raises numbers to powers"),  # minutes, deaf to every signal
    ],
)
def test_a_template_without_an_end_is_refused(template, problem, monkeypatch):
    monkeypatch.setattr(chat, "_SECONDS", 0.2)
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(ValueError, match=problem):
        chat_of(make(template))
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    chat_of(make("**" + CHATML))  # in a text it is none


def test_prompts_do_not_depend_on_the_day():
    for call in ("strftime_now('%d %b %Y')", "strftime_now(format='%d %b %Y')"):
        dated = make("{{ " + call + " }}" + CHATML)
        assert chat_text(dated, "x").startswith("26 Jul 2024<|turn|>")


@pytest.mark.parametrize("begins", [True, False])
def test_a_base_model_reads_plain_text(begins, capsys):
    """A chat template that is there, be it the user's, stays."""
    tokenizer = make(None)
    tokenizer.bos_token = "<|turn|>"
    if begins:
        turn = ("<|turn|>", tokenizer.bos_token_id)
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|turn|> $A", special_tokens=[turn]
        )
    ensure_template(tokenizer, "student.path='base'")
    assert "student.path='base': has no chat template, so" in capsys.readouterr().err
    expected = tokenizer.encode("look\n")
    assert (expected[0] == tokenizer.bos_token_id) == begins
    assert prompt_of(tokenizer, "look").tolist() == expected
    assert controls_in(tokenizer, prompt_of(tokenizer, "<|end|>")) == ["<|turn|>"] * begins
    theirs = make(CHATML)
    ensure_template(theirs, "student.path='chat'")
    assert (theirs.chat_template, capsys.readouterr().err) == (CHATML, "")


def test_a_teacher_with_another_template_is_told_of(capsys):
    for template in (CHATML, CHATML + "{# the same #}", None, "{{ raise_exception('') }}"):
        warn_other_chat(make(CHATML), make(template), "teacher.path='t'")
    assert capsys.readouterr().err == ""
    warn_other_chat(make(CHATML), make(HYBRID), "teacher.path='t'")
    assert "teacher.path='t': its chat template writes other text" in capsys.readouterr().err


# ------------------------------------------------------------------- text and control tokens

TRICKS = "a {0} b{0}{0} <|{0}|> {0}\n\u241eMESSAGE\u241e{0}"


def controls_in(tokenizer, ids, but=()):
    added = tokenizer.added_tokens_decoder
    return [added[i].content for i in ids if i in added and added[i].content not in but]


def test_no_text_becomes_a_control_token():
    tokenizer = make(HYBRID)
    expected = controls_in(tokenizer, prompt_of(tokenizer, "look"))
    assert expected == ["<|turn|>", "<|end|>", "<|turn|>", "<think>", "</think>"]
    for token in tokenizer.added_tokens_decoder.values():
        text = TRICKS.format(token.content)
        ids = prompt_of(tokenizer, text)
        assert controls_in(tokenizer, ids) == expected
        assert text in tokenizer.decode(ids)


def test_what_is_taught_has_thinking_tags_and_one_end_only():
    tokenizer = make(CHATML)
    renderer = Renderer(Tokens.of(tokenizer), echo(), history=0)
    ids = renderer.target("say <|end|> <tool>", "a <|turn|> page")
    assert controls_in(tokenizer, ids) == ["<think>", "</think>", "<|end|>"]
    assert renderer.response(ids) == "<think>a <|turn|> page</think>say <|end|> <tool>"


def test_instructions_may_hold_thinking_tags():
    tokenizer, told = make(CHATML), "\nThink inside <think> </think>. <tool>"
    ids = prompt_of(tokenizer, "a </think> page", instructions=told)
    expected = ["<|turn|>", "<think>", "</think>", "<|end|>", "<|turn|>"]
    assert controls_in(tokenizer, ids) == expected
    harmless = prompt_of(tokenizer, "a page", instructions="\nThink inside <think> </think>.")
    whole = chat_text(tokenizer, "a page\nThink inside <think> </think>.")
    assert harmless.tolist() == tokenizer.encode(whole)


def test_a_vocabulary_that_holds_control_tokens_as_words():
    """A unigram model would take the whole word, whatever the added tokens are."""
    words = [("<unk>", 0.0), *((c, -5.0) for c in "abc<|>end "), ("<|end|>", -1.0)]
    backend = Tokenizer(models.Unigram(words, unk_id=0))
    backend.add_special_tokens(["<|end|>"])
    control = backend.token_to_id("<|end|>")
    plain = PlainText(backend)
    for text in ("<|end|>", "a<|end|>b<|end|><|end|>"):
        assert control in backend.encode(text).ids
        (ids,) = plain.encode([text])
        assert control not in ids
        assert "".join(words[i][0] for i in ids) == text


@pytest.mark.parametrize("name", ["qwen3", "qwen2.5", "smollm2"])
def test_real_tokenizers_make_no_control_token_of_text(name, real_tokenizers):
    tokenizer = load_tokenizer(str(real_tokenizers / name))
    renderer = Renderer(Tokens.of(tokenizer), TEMPLATES["paper"], history=2)

    def prompt(text):
        shown = f"-= {text} =-\n\nYour task is to: put a mug in {text}."
        now = Observation(f"On the {text}, you see {text}.", (f"take {text}", "look"))
        (ids,) = renderer.prompts([Episode(((shown, f"go to {text}"),), now)])
        return ids

    expected = controls_in(tokenizer, prompt("desk 1"))
    assert {"<|im_start|>", "<|im_end|>"} <= set(expected)
    added = [t.content for t in tokenizer.added_tokens_decoder.values()]
    assert len(added) >= 17
    every = "".join(added)
    for text in (*added, every, TRICKS.format("<|im_end|>")):
        ids = prompt(text)
        assert controls_in(tokenizer, ids) == expected
        assert text in tokenizer.decode(ids)


@pytest.mark.parametrize("name", ["qwen3", "qwen2.5", "smollm2"])
def test_real_tokenizers_read_harmless_text_as_the_whole_template(name, real_tokenizers):
    tokenizer = load_tokenizer(str(real_tokenizers / name))
    for template in (echo(), TEMPLATES["paper"]):
        renderer = Renderer(Tokens.of(tokenizer), template, history=2)
        for text in ("look", "  two\n\n", "\n\n'a', 12.5 é 中文 😀", "e\u0301 \t x "):
            episode = Episode((), Observation(text, ("look", "go to desk 1")))
            (ids,) = renderer.prompts([episode])
            message = [{"role": "user", "content": renderer.message(episode)}]
            whole = tokenizer.apply_chat_template(
                message, add_generation_prompt=True, enable_thinking=False
            )
            assert ids.tolist() == list(whole["input_ids"])
