"""Configs: every file and variant loads and validates; bad values name key, value and fix."""

import errno
import importlib
import re
import subprocess
import sys

import jax
import pytest

from atod_jax import config, train
from atod_jax.run import cli
from configs import household, presets

VARIANTS = {
    "quickstart": [None],
    "household": [
        None,
        "algo=opd",
        "algo=grpo,teacher=good,steps=9",
        "smoke",
        "weighting=uniform",
        "preset=paper",
        "preset=released,algo=sdar",
        "thoughts,teacher=good",
    ],
    "household_sft": [f"stage={s}" for s in ("student_base", "teacher_mid", "teacher_good")]
    + ["stage=student,start=x"],
    "household_teacher": ["start=x,lr=0.01,steps=3"],
    "searchqa": ["smoke", "algo=grpo,smoke", "preset=paper,smoke"],
    "searchqa_sft": ["stage=student", "stage=teacher,steps=3,export=x"],
    "real": [None, "lora", "algo=grpo,size=tiny", "algo=atod,teacher=x,size=gpu,steps=1"],
    "alfworld": ["smoke", "algo=grpo,smoke", "preset=paper,smoke"],
    "webshop": ["smoke", "algo=grpo,smoke", "preset=paper,smoke"],
    "webshop_sft": [None, "start=x,messy,steps=3"],
}


@pytest.mark.parametrize(("name", "arg"), [(n, a) for n, args in VARIANTS.items() for a in args])
def test_every_variant_loads_and_validates(name, arg):
    get_config = importlib.import_module(f"configs.{name}").get_config
    cfg = get_config() if name == "quickstart" else get_config(arg)
    config.resolve(cfg)
    again = get_config() if name == "quickstart" else get_config(arg)
    assert cfg.to_dict() == again.to_dict()


def test_every_config_file_is_listed_here():
    found = {m.name for m in __import__("pkgutil").iter_modules(__import__("configs").__path__)}
    no_configs = {"presets", "sweeps", "one_gpu", "study", "study_models", "study_settings"}
    assert found - no_configs == set(VARIANTS)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("packing.micro_rows", 100, r"packing\.minibatch_rows=512: must be a multiple"),
        ("rollout.tasks", 0, r"rollout\.tasks=0: must lie in \[1, 1048576\]"),
        ("sampling.top_p", 0.0, r"sampling\.top_p=0\.0"),
        ("sampling.rows", -1, r"sampling\.rows=-1: must be at least 1"),
        ("sampling.temperature", 0.0, r"sampling\.temperature=0\.0"),
        ("optim.schedule", "cosin", r"optim\.schedule='cosin': choose from constant, cosine"),
        (
            "algorithm.name",
            "atodd",
            r"algorithm\.name='atodd': there is none \(did you mean",
        ),
        ("rollout.source", "expert", r"turns of the expert are for supervised"),
        ("sampling.prompt_buckets", (64, 32), r"in ascending order"),
        ("student.path", "", r"student\.path=''"),
        (
            "algorithm.atod.reward.invalid_penalty",
            0.1,
            r"reward\.invalid_penalty=0\.1 with stat",
        ),
        ("loss.surrogate", "trpo", r"loss\.surrogate='trpo': choose from ppo, gspo, cispo"),
        ("loss.aggregation", "mean", r"loss\.aggregation='mean': choose from token-mean"),
        (
            "env.alfworld.engine",
            "unity",
            r"env\.alfworld\.engine='unity': choose from",
        ),
        ("student.lora_rank", -1, r"student\.lora_rank=-1: must be at least 0"),
        ("student.lora_alpha", 0.0, r"student\.lora_alpha=0\.0: must be above 0"),
        ("algorithm.atod.weighting", "best", r"algorithm\.atod\.weighting='best'"),
    ],
)
def test_bad_values_are_named(key, value, message):
    cfg = household.get_config("preset=paper" if "penalty" in key else None)
    cfg.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=message):
        config.resolve(cfg)


def test_adapters_beside_a_new_model_are_refused():
    cfg = household.get_config()
    cfg.student.lora_rank, cfg.student.fresh.hidden_size = 4, 16
    with pytest.raises(ValueError, match=r"student\.lora_rank=4 with student\.fresh"):
        config.resolve(cfg)


def test_presets_decide_every_discrepancy_and_nothing_else():
    paper, released = (presets.overrides(name) for name in ("paper", "released"))
    assert paper.keys() == released.keys()
    differing = {key for key in paper if paper[key] != released[key]}
    assert {k.rpartition(".")[2] for k in differing} == {
        "min_turns", "min_divergence", "statistics", "invalid_penalty",
        "aggregation", "entropy_coef", "dual_clip",
    }  # fmt: skip
    for name in ("atod", "grpo", "sod", "sdar", "opd_gated"):  # baselines like for like
        assert paper[f"algorithm.{name}.reward.statistics"] == "trajectories"
        assert released[f"algorithm.{name}.reward.invalid_penalty"] == 0.1
    cfg = household.get_config("preset=paper")
    assert cfg.algorithm.atod.tdur.min_turns == 1
    assert cfg.loss.aggregation == "trajectory-mean-token-mean"
    with pytest.raises(ValueError, match="preset 'papers' is unknown; choose from released, paper"):
        household.get_config("preset=papers")


def test_all_problems_are_listed_at_once():
    cfg = household.get_config()
    cfg.rollout.tasks, cfg.env.max_turns = 0, -1
    with pytest.raises(ValueError, match=r"(?s)env\.max_turns.*rollout\.tasks"):
        config.resolve(cfg)


def test_unknown_variants_name_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'algo'"):
        household.get_config("alg=atod")


PLUGIN = """
import dataclasses
from atod_jax.algorithms.base import Algorithm, hybrid
@dataclasses.dataclass(frozen=True)
class Config:
    {field}
ALGORITHM = Algorithm(Config, lambda cfg, step: hybrid(step))
"""


def own_algorithm(folder, monkeypatch, file, field):
    (folder / "mine").mkdir(exist_ok=True)
    (folder / "mine" / f"{file}.py").write_text(PLUGIN.format(field=field))
    monkeypatch.syspath_prepend(folder)
    c = household.get_config()
    cli.override(c, [("algorithm.name", f"mine.{file}")])
    return c


def test_a_plug_in_may_be_called_as_a_shipped_one(tmp_path, monkeypatch):
    c = own_algorithm(tmp_path, monkeypatch, "atod", "bound: float = 2")
    cli.override(c, [("algorithm.atod.bound", "3")])
    run = config.resolve(c)
    assert run.algorithm.settings.bound == 3.0
    assert config.resolve(config.to_config(run)) == run


@pytest.mark.parametrize(
    ("file", "field", "message"),
    [
        ("bare", "bound: float", r"algorithm\.name='mine\.bare': its Config must be .*TypeError"),
        ("name", "bound: float = 2.0", r"algorithm\.name is an option; rename the module"),
        ("wrong", "bound: float = 'x'", r"its Config must be .*algorithm\.wrong\.bound='x'"),
    ],
)
def test_a_config_that_is_none_is_one_line(file, field, message, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=message):
        own_algorithm(tmp_path, monkeypatch, file, field)


def test_one_bad_value_is_one_problem():
    with pytest.raises(ValueError, match=r"^algorithm\.atod\.weighting='x': choose from[^\n]*$"):
        config.resolve(household.get_config("weighting=x"))


def test_the_last_of_several_names_counts():
    c = household.get_config()
    cli.override(c, [("env.name", "webshop"), ("env.name", "alfworld")])
    assert (c.env.name, c.eval.split, c.env.template) == ("alfworld", "valid_unseen", "compact")


HOUSEHOLD = "--config=configs/household.py"
MISTAKES = {
    (
        HOUSEHOLD,
        "--workdir=x",
        "--config.optim.lrr=1",
    ): "--config.optim.lrr: there is no such option; did you mean --config.optim.lr?",
    (HOUSEHOLD, "--workdir=x", "--config.optim.learning_rate=1"): "did you mean --config.optim.lr?",
    (HOUSEHOLD, "--workdir=x", "--config.env.games=x"): "did you mean --config.env.alfworld.games?",
    (HOUSEHOLD, "--lr=3"): "there is no flag --lr; did you mean --config.optim.lr?",
    (HOUSEHOLD, "--workdr=x"): "there is no flag --workdr; did you mean --workdir?",
    (HOUSEHOLD, "--workdir=x", "--config.seed=abc"): "seed='abc': must be a whole number",
    (HOUSEHOLD, "--workdir=x", "--config.seed=-1"): "seed=-1: must be a seed, 0 <= seed < 2**32",
    (HOUSEHOLD, "--workdir=x", "--config.optim.lr=nan"): "optim.lr=nan: must be a finite number",
    (HOUSEHOLD, "--workdir=x", "--config.rollout.group=1"): "rollout.group=1: a return is compared",
    (HOUSEHOLD, "--workdir=runs/a[1]"): "runs/a[1]: checkpoints cannot be read back from a folder",
    (HOUSEHOLD, "--workdir=x", "--config.export=atod_jax"): "which no export has written; name a",
    (HOUSEHOLD, "--workdir=x", "--config.optim.lr"): "--config.optim.lr is given no value",
    (HOUSEHOLD, "more"): "'more' is not understood",
    (HOUSEHOLD,): "--workdir is missing",
    ("--workdir=x",): "--config is missing",
    ("--config=configs/nowhere.py", "--workdir=x"): "configs/nowhere.py: no such file",
    ("--config=househol", "--workdir=x"): "did you mean 'household'",
    (f"{HOUSEHOLD}:algoo=opd", "--workdir=x"): "did you mean 'algo'",
    (f"{HOUSEHOLD}:steps=abc", "--workdir=x"): "config variant steps='abc': must be a whole number",
}


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_command_line_mistakes_are_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.run(train.PROGRAM, arguments)
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert line.startswith("error: ")
    assert MISTAKES[arguments] in line


@pytest.mark.parametrize(
    "error",
    [MemoryError(), OverflowError("int"), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")],
)
def test_memory_that_is_full_is_one_line(error, capsys):
    with pytest.raises(SystemExit) as stop, cli.short_errors():
        raise error
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    reason = "a number is too large (int)" if str(error) == "int" else "out of memory ("
    assert line.startswith(f"error: {reason}")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "runs/a/report.md"),
        ValueError("Error writing\n...: No space left on device [source]"),  # as Orbax says it
        OSError(errno.EROFS, "Read-only file system"),
    ],
)
def test_a_full_disk_is_one_line_with_a_code_of_its_own(error, capsys):
    with pytest.raises(SystemExit) as stop, cli.short_errors():
        raise error
    assert stop.value.code == 74
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(r"error: (No space left on device|Read-only file system) \(", line)
    assert line.endswith("; the same command goes on when there is room")


def test_what_fails_in_the_background_of_a_program_is_told_once_in_one_line():
    code = """
import sys, threading
sys.argv = ["-m"]
import atod_jax
def fail(): raise ValueError("a\\nb")
class Odd:
    def __del__(self): raise OSError("late")
for _ in range(2):
    thread = threading.Thread(target=fail); thread.start(); thread.join()
    Odd()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == [
        "in the background: ValueError: a b", "in the background: OSError: late"
    ]  # fmt: skip


def test_other_errors_of_a_device_are_not_shortened():
    with pytest.raises(jax.errors.JaxRuntimeError), cli.short_errors():
        raise jax.errors.JaxRuntimeError("INTERNAL: a fault")


def test_numbers_of_64_bits_are_refused(tmp_path, capsys):
    with jax.enable_x64(True), pytest.raises(SystemExit) as stop:
        cli.run(train.PROGRAM, [f"{HOUSEHOLD}:smoke", f"--workdir={tmp_path / 'run'}"])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: JAX_ENABLE_X64 is set: ")
    assert line.endswith("; unset it")
    assert not (tmp_path / "run").exists()


def test_a_mistake_ends_the_process_with_one_line():
    run = subprocess.run(
        [sys.executable, "-m", "atod_jax.train", HOUSEHOLD, "--lr=3"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 2
    assert run.stderr == "error: there is no flag --lr; did you mean --config.optim.lr?\n"
