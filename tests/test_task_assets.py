"""The shipped search and shop models: small, of one family, and as good and as bad as described."""

import functools

import jax
import pytest
from runs import typed

from atod_jax.episodes.render import load_tokenizer
from atod_jax.episodes.tokens import tokenizer_digest
from atod_jax.run import models as run_models
from atod_jax.run.evaluation import Evaluator
from atod_jax.run.layouts import layouts_of
from atod_jax.run.parts import environment
from configs import searchqa, webshop

CONFIGS = {"searchqa": searchqa, "webshop": webshop}
MODELS = ("student", "teacher")


@pytest.mark.parametrize("task", CONFIGS)
def test_the_shipped_files_stay_small(task):
    folder = run_models.ASSETS / task
    for name in MODELS:
        assert sum(f.stat().st_size for f in (folder / name).iterdir()) < 2**20
    assert (folder / "README.md").is_file()


@functools.cache
def loaded(task):
    cfg = typed(CONFIGS[task].get_config("smoke"))
    layout = layouts_of(cfg).student
    models = {
        name: run_models.load(f"{task}/{name}", "student.path", remat="none", layout=layout)
        for name in MODELS
    }
    return cfg, layout.mesh, models


@pytest.mark.parametrize("task", CONFIGS)
def test_both_speak_with_the_shipped_tokenizer(task):
    digests = {tokenizer_digest(m.tokenizer) for m in loaded(task)[2].values()}
    shipped = load_tokenizer(str(run_models.ASSETS / task / "tokenizer"))
    assert digests == {tokenizer_digest(shipped)}


@pytest.mark.parametrize(
    ("task", "name", "temperature", "low", "high"),
    # 96 tasks: the bounds are the promise of the model card, widened by 3 standard errors
    [
        ("searchqa", "student", 1.0, 0.06, 0.36),
        ("searchqa", "teacher", 1.0, 0.62, 0.92),
        ("webshop", "student", 0.4, 0.02, 0.16),
        ("webshop", "teacher", 0.4, 0.72, 0.95),
    ],
)
def test_success_on_held_out_tasks_is_as_described(task, name, temperature, low, high):
    cfg, mesh, models = loaded(task)
    model = models[name]
    env = environment(cfg, model.tokens)
    with jax.set_mesh(mesh):
        evaluator = Evaluator(cfg, model, env, temperature=temperature)
        result, _ = evaluator.run(model.params, env.tasks(env.plugin.splits[-1], 96))
    assert low <= result.rate().value <= high
