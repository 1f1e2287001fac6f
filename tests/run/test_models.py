"""The models of a run: where they come from, and which teachers fit."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from hf_folders import load_hf
from runs import load_models

from atod_jax.episodes.render import load_tokenizer
from atod_jax.models import block, build, config_from_hf
from atod_jax.models.checkpoint_io import save_hf
from atod_jax.models.loading import to_integers
from atod_jax.run import models as run_models
from atod_jax.sharding import Layout, make_mesh
from configs import household

TOKENIZER = run_models.ASSETS / "household" / "tokenizer"
SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 8, "intermediate_size": 24,
}  # fmt: skip


@pytest.fixture(scope="module")
def rows() -> int:
    """The number of ids of the tokenizer, rounded up to the mesh."""
    return -(-len(load_tokenizer(str(TOKENIZER))) // 8) * 8


def model_folder(folder, rows: int, *, tied: bool = True, tokenizer=TOKENIZER):
    sizes = SIZES | {"vocab_size": rows, "tie_word_embeddings": tied}
    config = config_from_hf(run_models.FRESH | sizes)
    save_hf(folder, config, build(config).init(jax.random.key(rows)))
    for file in tokenizer.iterdir():
        if file.name.startswith(("tokenizer", "chat_template")):
            shutil.copy(file, folder / file.name)
    return folder


def config(student, teacher, **changes):
    c = household.get_config("algo=opd,smoke")
    c.student.path, c.student.fresh.hidden_size = str(student), 0
    c.teacher.path = str(teacher)
    c.update_from_flattened_dict(changes)
    return c


def models(cfg):
    return load_models(cfg)[1:]


@pytest.mark.parametrize("more", [-8, 0, 64])
@pytest.mark.parametrize("tied", [True, False])
def test_a_padded_teacher_head_is_brought_to_the_students(more, tied, rows, tmp_path, capsys):
    student = model_folder(tmp_path / "student", rows + 8)
    folder = model_folder(tmp_path / "teacher", rows + 8 + more, tied=tied)
    ours, teacher = models(config(student, folder))
    head = np.asarray(teacher.lm.head(teacher.params))
    assert head.shape == ours.lm.head(ours.params).shape
    stored = load_hf(folder)[1]["embed" if tied else "head"]["embedding"]
    np.testing.assert_array_equal(head[:rows], stored[:rows])
    said = f"head has {rows + 8 + more} rows, the student's {rows + 8}"
    assert (said in capsys.readouterr().out) == (more != 0)


def changed_tokenizer(folder, change):
    shutil.copytree(TOKENIZER, folder)
    file = folder / "tokenizer.json"
    fields = json.loads(file.read_text())
    change(fields["model"]["vocab"])
    file.write_text(json.dumps(fields))
    return folder


def test_a_teacher_with_other_ids_is_refused(rows, tmp_path):
    student = model_folder(tmp_path / "student", rows + 8)

    def grow(vocab):
        vocab.append(["quixotic", -9.0])

    def swap(vocab):
        vocab[100], vocab[101] = vocab[101], vocab[100]

    larger = changed_tokenizer(tmp_path / "larger", grow)
    other = model_folder(tmp_path / "a", rows + 8, tokenizer=larger)
    with pytest.raises(ValueError, match=r"teacher\.path=.*vocabulary of \d+ ids, the student"):
        models(config(student, other))
    swapped = changed_tokenizer(tmp_path / "swapped", swap)
    other = model_folder(tmp_path / "b", rows + 8, tokenizer=swapped)
    with pytest.raises(ValueError, match=r"teacher\.path=.*tokenizer differs"):
        models(config(student, other))


def test_a_teacher_with_other_special_ids_is_refused(rows, tmp_path):
    """Before its weights are read."""
    student = model_folder(tmp_path / "student", rows)
    other = model_folder(tmp_path / "teacher", rows)
    (other / "model.safetensors").unlink()
    file = other / "tokenizer_config.json"
    fields = json.loads(file.read_text())
    fields["eos_token"] = fields["pad_token"]
    file.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"teacher\.path=.*\(padding, end\) ids are \((\d+), \1\)"):
        models(config(student, other))


def test_a_base_student_and_a_chat_teacher_are_told_of(rows, tmp_path, capsys):
    student, teacher = (model_folder(tmp_path / name, rows) for name in ("student", "teacher"))
    (student / "chat_template.jinja").unlink()
    models(config(student, teacher))
    told = capsys.readouterr().err
    assert f"student.path='{student}': has no chat template, so" in told
    assert f"teacher.path='{teacher}': its chat template writes other text" in told
    shutil.copy(teacher / "chat_template.jinja", student)
    models(config(student, teacher))
    assert capsys.readouterr().err == ""


def test_types_of_weights_and_products(rows, tmp_path):
    folder = model_folder(tmp_path / "m", rows)
    types = {"student.dtype": "bfloat16", "teacher.dtype": "bfloat16"}
    student, teacher = models(config(folder, folder, **types))
    assert {x.dtype for x in jax.tree.leaves(student.params)} == {np.dtype("float32")}
    assert {str(x.dtype) for x in jax.tree.leaves(teacher.params)} == {"bfloat16"}
    assert student.lm.config.dtype == teacher.lm.config.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("dtype", "mesh"),
    [("float32", {"mesh.data": 8}), ("int8", {"mesh.data": 1, "mesh.fsdp": 8})],
)
def test_a_teacher_is_loaded_as_it_is_read(dtype, mesh, rows, tmp_path, monkeypatch):
    """What `serve` makes of a stack, with one matrix where a kernel computes attention."""
    folder = model_folder(tmp_path / "m", rows + 16 + 8 * (dtype == "int8"))
    monkeypatch.setattr(block, "kernel_for", lambda *_: "cudnn")
    student, teacher = models(config(folder, folder, **{"teacher.dtype": dtype} | mesh))
    assert set(teacher.params["blocks"][1]["attn"]) == {"qkv", "o", "q_norm", "k_norm"}
    assert run_models.to_sampling(teacher, teacher.params) is teacher.params
    with jax.set_mesh(student.layout.mesh):
        places = run_models._shardings(student.layout, teacher.params)
        stored = to_integers(
            student.lm.config, jax.tree.map(lambda x: x.astype("bfloat16"), student.params)
        )
        want = student.lm.serve(stored if dtype == "int8" else student.params)
    assert jax.tree.structure(teacher.params) == jax.tree.structure(want)
    for ours, theirs, place in zip(*map(jax.tree.leaves, (teacher.params, want, places))):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.sharding.is_equivalent_to(place, ours.ndim)


def test_a_teacher_kept_as_integers_is_a_quarter_of_its_size(rows, tmp_path):
    folder = model_folder(tmp_path / "m", rows)
    student, teacher = models(config(folder, folder, **{"teacher.dtype": "int8"}))
    assert teacher.lm.config.dtype == "bfloat16"
    kernel = teacher.params["blocks"][-1]["mlp"]["up"]["kernel"]
    assert 4 * kernel.nbytes == student.params["last"]["mlp"]["up"]["kernel"].nbytes
    assert teacher.lm.head(teacher.params).dtype == "bfloat16"


@pytest.mark.parametrize(("storage", "most"), [("bfloat16", 5e-4), ("int8", 1e-3)])
def test_what_a_smaller_type_costs_a_trained_teacher(storage, most):
    """KL(float32 || smaller) per token, in nats; measured 8e-5 and 2e-4."""
    options = {"remat": "none", "layout": Layout(make_mesh({"data": 8}))}
    load = functools.partial(run_models.load, "household/teacher-good", "teacher.path", **options)
    text = "you see a desk 1, a drawer 1. your task is to: put a pen in drawer. open drawer 1. " * 4

    def log_probabilities(model):
        ids = np.array([model.tokenizer(text)["input_ids"]], np.int32)
        hidden = model.lm.hidden(model.params, ids, np.array([[ids.size]], np.int32))
        head = model.lm.head(model.params).astype(np.float32)
        return jax.nn.log_softmax(hidden.astype(np.float32) @ head.T)

    exact = log_probabilities(load())
    small = log_probabilities(load(compute="bfloat16", storage=storage))
    kl = np.sum(np.exp(exact) * (exact - small), axis=-1)
    assert 0 < kl.mean() < most


def test_a_published_model_goes_through_the_cache(rows, tmp_path, monkeypatch):
    folder = model_folder(tmp_path / "m", rows)
    monkeypatch.setattr(run_models.hub, "snapshot", lambda name, key: {"org/model": folder}[name])
    student, _ = models(config("org/model", ""))
    assert student.path == folder
    with pytest.raises(FileNotFoundError, match=r"student\.path='household/typo'.*shipped models"):
        models(config("household/typo", ""))
