"""The shipped search models: small, of one family, and as good and as bad as described."""

import jax
import pytest

from atod_jax import assembly
from atod_jax.evaluation import Evaluator
from atod_jax.layouts import layouts_of
from configs import searchqa

FOLDER = assembly.ASSETS / "searchqa"
MODELS = ("student", "teacher")


def test_the_shipped_files_stay_small():
    for name in MODELS:
        assert sum(f.stat().st_size for f in (FOLDER / name).iterdir()) < 2**20
    assert (FOLDER / "README.md").is_file()


@pytest.fixture(scope="module")
def loaded():
    cfg = searchqa.get_config("smoke")
    layout = layouts_of(cfg).student
    models = {
        name: assembly.load(f"searchqa/{name}", "student.path", remat="none", layout=layout)
        for name in MODELS
    }
    return cfg, layout.mesh, models


def test_both_speak_with_the_shipped_tokenizer(loaded):
    digests = {assembly.tokenizer_digest(m.tokenizer) for m in loaded[2].values()}
    shipped = assembly.load_tokenizer(str(FOLDER / "tokenizer"))
    assert digests == {assembly.tokenizer_digest(shipped)}


@pytest.mark.parametrize(
    ("name", "low", "high"),
    # 96 questions: the bounds are the promise of the model card, widened by 3 standard errors
    [("student", 0.06, 0.36), ("teacher", 0.62, 0.92)],
)
def test_success_on_held_out_questions_is_as_described(name, low, high, loaded):
    cfg, mesh, models = loaded
    model = models[name]
    env = assembly.environment(cfg, model.tokenizer)
    with jax.set_mesh(mesh):
        evaluator = Evaluator(cfg, model, env, temperature=1.0)
        result, _ = evaluator.run(model.params, env.tasks("test", 96))
    assert low <= result.rate().value <= high
