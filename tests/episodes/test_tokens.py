"""Which ids exist, end an action or only fill; and when two models mean the same by them."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from atod_jax.envs.base import Episode, Observation, Template
from atod_jax.episodes.render import Renderer, load_tokenizer
from atod_jax.episodes.tokens import Tokens, require_same_ids, tokenizer_digest

SHOW = Template(
    prompt=lambda episode, history: episode.current.text,
    project=None,
    respond=lambda command, thought: command,
)
SPECIAL = ("<|end|>", "<|turn|>", "<|pad|>")


def make(*, extra=(), special=SPECIAL, change=lambda backend: None, **roles):
    """Bytes and a few added tokens; `roles` as in tokenizer_config.json."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(special))
    backend.add_tokens(list(extra))
    change(backend)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **roles)


def folder(path, encoding="utf-8-sig", **files):
    for name, fields in files.items():
        (path / f"{name}.json").write_text(json.dumps(fields), encoding=encoding)
    return path


def test_ends_are_those_of_all_files_and_none_of_them_is_forbidden(tmp_path):
    tokenizer = make(eos_token="<|turn|>", pad_token="<|end|>")
    end, turn, pad = tokenizer.convert_tokens_to_ids(SPECIAL)
    path = folder(
        tmp_path,
        config={"eos_token_id": None},
        generation_config={"eos_token_id": [turn, end]},
    )
    tokens = Tokens.of(tokenizer, path)
    assert (tokens.end, tokens.ends, tokens.pad) == (turn, (turn, end), end)
    assert tokens.silent == ()
    alone = Tokens.of(tokenizer)
    assert (alone.ends, alone.pad, alone.silent) == ((turn,), end, (end,))
    folder(tmp_path, config={"eos_token_id": pad})
    assert Tokens.of(make(), tmp_path).ends == (turn, end, pad)


@pytest.mark.parametrize("pad", [None, "<|turn|>"])
def test_padding_that_is_absent_or_the_end_takes_nothing_away(pad):
    tokens = Tokens.of(make(eos_token="<|turn|>", pad_token=pad))
    assert tokens.pad == tokens.end
    assert tokens.silent == ()


def test_padding_that_is_text_is_said():
    """As the "!" of some Llama models."""
    tokenizer = make(eos_token="<|end|>", pad_token="!")
    tokenizer.chat_template = "<|turn|>{{ messages[0].content }}<|turn|>"
    tokens = Tokens.of(tokenizer)
    assert (tokens.pad, tokens.silent) == (tokenizer.convert_tokens_to_ids("!"), ())
    renderer = Renderer(tokens, SHOW, history=0)
    (ids,) = renderer.prompts([Episode((), Observation("stop! it"))])
    assert tokenizer.decode(ids) == "<|turn|>stop! it<|turn|>"
    assert renderer.response(renderer.target("stop! it")) == "stop! it"


def test_the_highest_id_decides_and_holes_are_never_said(tmp_path):
    """Added tokens may lie far behind the vocabulary, as in files with reserved rows."""
    tokenizer = make(eos_token="<|end|>", pad_token="<|pad|>")
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    form = json.loads(file.read_text())
    form["model"]["vocab"]["zz"] = 400
    file.write_text(json.dumps(form))
    tokens = Tokens.of(load_tokenizer(str(tmp_path)))
    known = set(tokens.tokenizer.get_vocab().values())
    assert (tokens.count, len(tokens.tokenizer)) == (401, len(known))
    assert len(known) < 401
    assert set(tokens.silent) == set(range(401)) - known | {tokens.pad}


@pytest.mark.parametrize("end", [999, "<|end|>", True])
def test_an_end_that_is_no_id_is_refused_with_its_file(end, tmp_path):
    folder(tmp_path, generation_config={"eos_token_id": end})
    with pytest.raises(ValueError, match=r"generation_config\.json: eos_token_id=.*is no id"):
        Tokens.of(make(eos_token="<|end|>"), tmp_path)
    with pytest.raises(ValueError, match="nothing says which token ends an answer"):
        Tokens.of(make())


def test_how_texts_were_cut_and_filled_before_is_left_out(tmp_path):
    """Files saved after batches of one length say so; the head of a prompt is text all the same."""
    tokenizer = make(eos_token="<|end|>")
    tokenizer.chat_template = "<|turn|>user {{ messages[0].content }}<|turn|>assistant "
    tokenizer.backend_tokenizer.enable_padding(length=64, pad_id=256, pad_token="<|end|>")
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.save_pretrained(tmp_path)
    assert '"Fixed":64' in "".join((tmp_path / "tokenizer.json").read_text().split())
    loaded = load_tokenizer(str(tmp_path))
    (ids,) = Renderer(Tokens.of(loaded), SHOW, history=0).prompts([Episode((), Observation("go"))])
    assert loaded.decode(ids) == "<|turn|>user go<|turn|>assistant "


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"tokenizer_class": "ByT5Tokenizer"}, "ByT5Tokenizer has no fast form"),
        (
            {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}},
            "contains custom code",  # which is not run, and nobody is asked
        ),
    ],
)
def test_a_tokenizer_of_another_kind_is_refused(fields, problem, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    make(eos_token="<|end|>").save_pretrained(tmp_path)
    folder(tmp_path, encoding="utf-8", tokenizer_config=fields)
    with pytest.raises(FileNotFoundError, match=problem):
        load_tokenizer(str(tmp_path))


def tokens(**options):
    return Tokens.of(make(**({"eos_token": "<|end|>", "pad_token": "<|pad|>"} | options)))


def test_other_ways_from_text_to_ids_are_a_warning(capsys):
    require_same_ids(tokens(), tokens(), "teacher.path='t'")
    require_same_ids(tokens(), tokens(pad_token=None), "teacher.path='t'")
    assert capsys.readouterr().err == ""

    def normalize(backend):
        backend.normalizer = normalizers.NFC()

    require_same_ids(tokens(), tokens(change=normalize), "teacher.path='t'")
    told = capsys.readouterr().err
    assert "teacher.path='t': its normalizer of tokenizer.json differ" in told
    assert "the ids mean the same" in told


def test_affixes_that_are_null_are_empty(tmp_path, capsys):
    digests = []
    for name, affix in (("a", None), ("b", "")):
        make(eos_token="<|end|>").save_pretrained(tmp_path / name)
        file = tmp_path / name / "tokenizer.json"
        form = json.loads(file.read_text())
        form["model"] |= {"continuing_subword_prefix": affix, "end_of_word_suffix": affix}
        file.write_text(json.dumps(form))
        digests.append(tokenizer_digest(load_tokenizer(str(tmp_path / name))))
    assert digests[0] == digests[1]
    a, b = (Tokens.of(load_tokenizer(str(tmp_path / name))) for name in "ab")
    require_same_ids(a, b, "teacher")
    assert capsys.readouterr().err == ""


def test_other_tokens_and_other_ends_are_refused():
    name = "teacher.path='t'"
    with pytest.raises(ValueError, match=r"vocabulary of 260 ids, .* has 259 \(id 259 is '<x>'"):
        require_same_ids(tokens(), tokens(extra=["<x>"]), name)
    with pytest.raises(ValueError, match=r"differs .*id 256 is '<\|turn\|>' there, '<\|end\|>' he"):
        require_same_ids(tokens(), tokens(special=("<|turn|>", "<|end|>", "<|pad|>")), name)
    with pytest.raises(ValueError, match="must end an answer alike"):
        require_same_ids(tokens(), tokens(eos_token="<|turn|>"), name)


def test_a_second_end_of_one_of_them_is_a_warning(tmp_path, capsys):
    tokenizer = make(eos_token="<|end|>")
    turn = tokenizer.convert_tokens_to_ids("<|turn|>")
    more = Tokens.of(tokenizer, folder(tmp_path, config={"eos_token_id": turn}))
    require_same_ids(Tokens.of(tokenizer), more, "teacher.path='t'")
    assert "may also end with the ids [256, 257] there" in capsys.readouterr().err


def test_real_tokenizers(real_tokenizers):
    """(end, padding, ids, never said)"""
    roles = {
        name: Tokens.of(load_tokenizer(str(real_tokenizers / name)))
        for name in ("qwen3", "qwen2.5", "smollm2")
    }
    found = {name: (t.end, t.pad, t.count, t.silent) for name, t in roles.items()}
    assert found == {
        "qwen3": (151645, 151643, 151669, (151643,)),
        "qwen2.5": (151645, 151643, 151936, (151643,)),
        "smollm2": (2, 2, 49152, ()),
    }
