"""The shipped models: loadable by anyone, of one family, and as good and as bad as described."""

import jax
import pytest
from runs import typed

from atod_jax.episodes.tokens import tokenizer_digest
from atod_jax.run import models as run_models
from atod_jax.run.evaluation import Evaluator
from atod_jax.run.layouts import layouts_of
from atod_jax.run.parts import environment
from configs import household

FOLDER = run_models.ASSETS / "household"
MODELS = ("student", "teacher-mid", "teacher-good", "student-thoughts", "teacher-good-thoughts")


def test_the_shipped_files_stay_small():
    assert sum(f.stat().st_size for f in FOLDER.rglob("*") if f.is_file()) < 10 * 2**20
    assert (FOLDER / "README.md").is_file()


@pytest.fixture(scope="module")
def loaded():
    cfg = typed(household.get_config())
    layout = layouts_of(cfg).student
    models = {
        name: run_models.load(f"household/{name}", "student.path", remat="none", layout=layout)
        for name in MODELS
    }
    return cfg, layout.mesh, models


def test_all_speak_with_the_same_tokens(loaded):
    _, _, models = loaded
    digests = {tokenizer_digest(m.tokenizer) for m in models.values()}
    assert len(digests) == 1
    assert len({m.lm.config.vocab_size for m in models.values()}) == 1


@pytest.mark.parametrize(
    ("name", "low", "high"),
    # 96 games: the bounds are the promise of the model card, widened by 3 standard errors
    [("student", 0.0, 0.20), ("teacher-mid", 0.35, 0.80), ("teacher-good", 0.62, 1.0)],
)
def test_success_on_unseen_games_is_as_described(name, low, high, loaded):
    cfg, mesh, models = loaded
    model = models[name]
    env = environment(cfg, model.tokens)
    with jax.set_mesh(mesh):
        evaluator = Evaluator(cfg, model, env, temperature=1.0)
        result, _ = evaluator.run(model.params, env.tasks("valid_unseen", 96))
    assert low <= result.rate().value <= high
