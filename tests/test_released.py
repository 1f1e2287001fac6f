"""The released runs: every number of their scripts, for all tasks, student sizes and algorithms."""

import importlib

import pytest

from atod_jax import config
from atod_jax.options import plugins
from configs import presets

STUDENTS = ("0.6b", "1.7b", "4b")
ALGORITHMS = [name for name in plugins.names(plugins.ALGORITHMS) if name != "sft"]
TASKS = ("alfworld", "webshop", "searchqa")
# Per task, in the order of TASKS.
TABLE = {
    "rollout.tasks": (16, 16, 128),
    "rollout.group": (8, 8, 8),
    "env.max_turns": (50, 15, 4),
    "env.history": (2, 2, 4),
    "sampling.temperature": (1.0, 1.0, 1.0),
    "sampling.max_new_tokens": (512, 512, 512),
    "packing.minibatch_rows": (256, 64, 256),
    "optim.lr": (1e-6, 1e-6, 1e-6),
    "optim.schedule": ("constant", "constant", "constant"),
    "optim.warmup_steps": (0, 0, 15),
    "optim.clip_norm": (1.0, 1.0, 1.0),
    "loss.clip_low": (0.2, 0.2, 0.2),
    "loss.clip_high": (0.2, 0.2, 0.2),
    "loss.dual_clip": (3.0, 3.0, 3.0),
    "loss.aggregation": ("token-mean", "token-mean", "token-mean"),
    "loss.entropy_coef": (0.001, 0.001, 0.001),
    "loss.kl_coef": (0.0, 0.0, 0.0),
    "total_steps": (150, 150, 150),
    "eval.tasks": (128, 128, 2048),
    "eval.slots": (128, 128, 512),
    "eval.every": (5, 5, 15),
    "eval.temperatures": ((0.4,), (0.4,), (0.0,)),
    "eval.curve_temperature": (0.4, 0.4, 0.0),
    "algorithm.atod.weighting": ("tdur", "tdur", "tdur"),
    "algorithm.atod.tdur.score": ("softor", "softor", "softor"),
    "algorithm.atod.tdur.min_turns": (3, 3, 3),
    "algorithm.atod.tdur.min_divergence": (0.01, 0.01, 0.01),
    "algorithm.atod.tdur.top_rho": (1.0, 1.0, 1.0),
    "algorithm.atod.tdur.smoothing": (0.0, 0.0, 0.0),
    "algorithm.atod.tdur.mean_preserving": (False, False, False),
    "algorithm.atod.anneal.kappa_start": (1.0, 1.0, 1.0),
    "algorithm.atod.anneal.kappa_end": (0.1, 0.1, 0.1),
    "algorithm.atod.anneal.rho_start": (1.0, 1.0, 1.0),
    "algorithm.atod.anneal.rho_end": (2.0, 2.0, 2.0),
}
LONGEST_PROMPT = dict(zip(TASKS, (2048, 4096, 4096)))
WIN_REWARD = dict(zip(TASKS, (10.0, 10.0, 1.0)))
PENALTY = dict(zip(TASKS, (0.1, 0.1, 0.01)))
# Per task, by size in the order of STUDENTS.
MICRO_ROWS_PER_GPU = {"alfworld": (32, 32, 32), "webshop": (8, 8, 8), "searchqa": (32, 16, 16)}
ANNEAL_STEPS = {"alfworld": (80, 150, 80), "webshop": (80, 80, 80), "searchqa": (80, 80, 80)}
STUDENT = ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B", "Qwen/Qwen3-4B")
TEACHER = ("Qwen/Qwen3-4B", "Qwen/Qwen3-4B", "Qwen/Qwen3-30B-A3B")
TAUGHT = {"atod", "opd", "opd_gated", "sod", "tcod"}


def load(task: str, arg: str):
    return importlib.import_module(f"configs.{task}").get_config(arg)


def value(cfg, key: str):
    for name in key.split("."):
        cfg = cfg[name]
    return cfg


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("size", range(3), ids=STUDENTS)
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_configs_carry_the_released_numbers(task, size, algo):
    cfg = load(task, f"student={STUDENTS[size]},algo={algo}")
    config.resolve(cfg)
    column = TASKS.index(task)
    assert {k: value(cfg, k) for k in TABLE} == {k: row[column] for k, row in TABLE.items()}
    assert cfg.env.name == task
    assert cfg.algorithm.name == algo
    assert cfg.sampling.prompt_buckets[-1] == LONGEST_PROMPT[task]
    if "reward" in cfg.algorithm[algo]:
        assert cfg.algorithm[algo].reward.invalid_penalty == PENALTY[task]
    assert cfg.env[task].win_reward == WIN_REWARD[task]
    assert cfg.env[task].seed == 0
    assert cfg.packing.micro_rows == 8 * MICRO_ROWS_PER_GPU[task][size]
    assert cfg.algorithm.atod.anneal.steps == ANNEAL_STEPS[task][size]
    assert cfg.student.path == STUDENT[size]
    assert cfg.teacher.path == (TEACHER[size] if algo in TAUGHT else "")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("student", STUDENTS)
def test_the_paper_changes_what_it_says_otherwise(task, student):
    cfg = load(task, f"student={student},preset=paper")
    config.resolve(cfg)
    assert cfg.algorithm.atod.anneal.steps == 80
    assert cfg.algorithm.atod.tdur.min_turns == 1
    assert cfg.algorithm.grpo.reward.invalid_penalty == 0.0
    assert tuple(cfg.eval.temperatures) == (0.4,)
    assert cfg.eval.curve_temperature == 0.4


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("student", STUDENTS)
def test_smoke_shrinks_every_size_to_the_same_small_run(task, student):
    cfg = load(task, f"student={student},smoke")
    config.resolve(cfg)
    ours, small = cfg.to_dict(), load(task, "smoke").to_dict()
    assert ours == small
    assert cfg.total_steps <= 6
    assert cfg.student.path.startswith(("household/", "searchqa/", "webshop/"))
    assert cfg.rollout.tasks * cfg.rollout.group <= 64
    assert cfg.packing.micro_rows <= 32
    assert cfg.sampling.max_new_tokens <= 16
    assert cfg.optim.warmup_steps == 0


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("student=8b", r"student='8b' is unknown; choose from 0\.6b, 1\.7b, 4b"),
        ("algo=atodd", r"did you mean 'atod'"),
        ("preset=papers", r"preset 'papers' is unknown"),
        ("size=4b", r"config variant 'size' is unknown"),
    ],
)
def test_unknown_variants_name_what_there_is(task, arg, message):
    with pytest.raises(ValueError, match=message):
        load(task, arg)


def test_models_are_named_once():
    assert set(presets.MODELS) == set(STUDENTS)
