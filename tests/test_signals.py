"""What `signals` says: gradients of groups, their noise, where disagreement and weights fall."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import load_models, save_random_model, smoke_config, start, typed

from atod_jax import signals
from atod_jax.run.batch import pack
from atod_jax.run.collectors import make_collector
from atod_jax.run.gradients import Directions, GroupGradient
from atod_jax.run.parts import algorithm, environment
from atod_jax.run.scorers import BatchScorer


def test_the_noise_scale_is_that_of_the_groups():
    rng = np.random.default_rng(0)
    mean, groups = np.array([3.0, 4.0, 0.0, 0.0]), 4000
    drawn = mean + 2.0 * rng.normal(size=(groups, 1, 4))  # |mean|^2 = 25, trace 16
    other = np.array([0.0, 5.0, 0.0, 0.0]) + drawn - mean  # the noise of both is the same
    of = Directions()
    for pair in np.concatenate([drawn, other], axis=1):
        of.add(pair)
    np.testing.assert_allclose(np.diag(of.inner()), 25, rtol=0.03)
    np.testing.assert_allclose(of.noise2(), 16, rtol=0.03)
    np.testing.assert_allclose(of.noise_scale(), 16 / 25, rtol=0.05)
    cosines, errors = of.cosines()
    np.testing.assert_allclose(cosines[0, 1], 0.8, atol=0.02)
    assert 0 < errors[0, 1] < 0.02
    nothing = Directions()
    for sign in (1.0, -1.0, 1.0, -1.0):
        nothing.add(sign * np.ones((1, 4)))
    assert nothing.noise_scale() == [np.inf]
    assert np.isnan(nothing.cosines()).all()
    with pytest.raises(ValueError, match="0 groups: cosines need at least 3"):
        Directions().cosines()


def test_the_error_of_a_cosine_is_how_far_it_moves_with_other_groups():
    rng = np.random.default_rng(0)
    mean, found = np.array([[3.0, 4.0, 0.0, 0.0], [0.0, 5.0, 0.0, 0.0]]), []
    for _ in range(200):
        of = Directions()
        for noise in rng.normal(size=(50, 2, 4)):  # of both its own
            of.add(mean + 3.0 * noise)
        cosines, errors = of.cosines()
        found.append((cosines[0, 1], errors[0, 1]))
    moved, said = np.std([x for x, _ in found]), np.mean([x for _, x in found])
    assert said == pytest.approx(moved, rel=0.15)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [save_random_model(folder / name, seed=k) for k, name in enumerate("st")]


def test_a_gradient_is_that_of_the_sum_of_advantages_times_log_probabilities(models):
    """By finite differences of the log-probabilities that the scorer gives."""
    c = smoke_config(models)
    cfg = typed(c)
    layouts, student, teacher = load_models(c)
    env = environment(cfg, student.tokens)
    with jax.set_mesh(layouts.student.mesh), contextlib.closing(env.pool):
        roles = {"student": student, "teacher": teacher, "algorithm": algorithm(cfg)}
        collect = make_collector(cfg, env, between_turns=lambda: None, **roles)
        packed = pack(cfg, collect(0, student.params), student=student, step=0)
        rng = np.random.default_rng(0)
        first, second = (jnp.asarray(rng.normal(size=packed.mask.shape)) for _ in range(2))
        of = GroupGradient(cfg, student)
        both = of(packed, [first, second])
        np.testing.assert_allclose(of(packed, [first + second])[0], both.sum(0), atol=1e-3)
        for stream, gradient in zip((first, second), both, strict=True):  # nothing of the other
            np.testing.assert_allclose(of(packed, [stream])[0], gradient, atol=1e-4)

        flat, back = jax.flatten_util.ravel_pytree(student.params)
        way = rng.normal(size=flat.shape).astype(np.float32)
        way /= np.linalg.norm(way)

        def objective(t):
            score = BatchScorer(student, cfg, layouts.student.mesh)
            logp = np.asarray(score(back(flat + t * way), packed).logp, np.float64)
            return float((logp * np.asarray(first) * packed.mask).sum())

        slope = (objective(2e-3) - objective(-2e-3)) / 4e-3
        assert both[0] @ way == pytest.approx(slope, rel=0.02, abs=0.02)


def test_a_step_of_a_run_is_told(models, tmp_path, capsys):
    c = smoke_config(models, total_steps=1, **{"packing.minibatch_rows": 64})
    start(c, tmp_path / "run")
    cfg = typed(c, **{"rollout.tasks": 3})
    capsys.readouterr()
    signals.signals(cfg, str(tmp_path / "run" / "checkpoints" / "1"), str(tmp_path / "told"))
    text = (tmp_path / "told" / "signals.md").read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    rows = {cells[0]: cells[1:] for cells in lines if len(cells) > 3}
    assert rows["uniform"][2] in ("1.00 ± 0.00", "")  # of its own direction
    assert rows["reward"][3] in ("1.00 ± 0.00", "")  # nothing where no group is mixed
    size = {name: float(rows[name][0]) for name in (*signals.WEIGHTS, "reward")}
    assert 0 < size["T-DUR"] <= size["uniform"]  # its weights are at most 1
    commands = [name for name in rows if name not in {*size, "signal", "command", "all", "---"}]
    shares = np.array([[float(x) for x in (rows[n][0], *rows[n][4:])] for n in commands])
    np.testing.assert_allclose(shares.sum(0), 100, atol=0.1 * len(commands))
    assert rows["all"][:1] == ["100"]


def test_a_run_without_a_teacher_has_no_such_signals(models):
    with pytest.raises(ValueError, match=r"teacher.path=''.*name a run that has both"):
        signals.signals(typed(smoke_config((models[0], ""), "grpo")), "")
    with pytest.raises(ValueError, match=r"rollout\.tasks=2: signals need at least 3 groups"):
        signals.signals(typed(smoke_config(models)), "")
