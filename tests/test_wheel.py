"""The package as other people have it: installed from a wheel, with plug-ins of their own.

In a folder outside the repository, with a package `configs` that is not ours, an environment and an
algorithm of one's own are trained, evaluated and played.
"""

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

from atod_jax.options import plugins
from atod_jax.options.plugins import ALGORITHMS

REPO = Path(__file__).resolve().parents[1]

PROMPTS = """
from atod_jax.envs.base import Projection, Template


def prompt(episode, history):
    return f"{episode.current.text} > "


def project(response, commands):
    digits = "".join(filter(str.isdigit, response))
    return Projection(digits or "0", bool(digits))


TEMPLATE = Template(prompt, project, lambda command, thought: command)
"""

ENVIRONMENT = """
import dataclasses

from atod_jax.envs.base import Environment, Observation, StepResult
from atod_jax.options.field import at_least, option
from atod_jax.records import Task

from .prompts import TEMPLATE


@dataclasses.dataclass(frozen=True)
class Config:
    high: int = option(9, "numbers run from 1 to this one", at_least(1))


class Guess:
    def reset(self, task):
        self._number = task.payload
        return Observation("guess", ("1", "2"))

    def step(self, command):
        won = command == str(self._number)
        text = "Yes." if won else "No."
        return StepResult(Observation(text, ("1", "2")), float(won), won, won)

    def close(self):
        pass


def tasks(cfg, split):
    return [Task(f"{split}/{n}", "guess", n) for n in range(1, cfg.high + 1)]


def make(cfg, max_turns):
    return Guess()


ENVIRONMENT = Environment(Config, ("train", "test"), {"plain": TEMPLATE}, tasks, make)
"""

ALGORITHM = """
import dataclasses

from atod_jax.algorithms.base import Algorithm, always, hybrid, log_gap
from atod_jax.options.field import at_least, option


@dataclasses.dataclass(frozen=True)
class Config:
    coef: float = option(1.0, "weight of the teacher", at_least(0))


def signal(cfg, step):
    return hybrid(step, distill=cfg.coef * log_gap(step))


ALGORITHM = Algorithm(Config, signal, needs_teacher=always)
"""

EXPERIMENT = """
from atod_jax import config


def get_config():
    c = config.load("household:smoke")
    c.env.template = "my_package.prompts"
    c.env.max_turns = 2
    c.sampling.prompt_buckets = (64,)
    c.sampling.max_new_tokens = 2
    c.total_steps, c.rollout.tasks, c.rollout.group = 1, 1, 2
    c.packing.minibatch_rows = c.packing.micro_rows = 2
    c.eval.split = "test"
    c.eval.final_tasks = c.eval.slots = 2
    c.eval.every = 0
    c.eval.temperatures = (1.0,)
    return c
"""
PLUG_INS = (
    "--config=my_experiment.py",
    "--config.algorithm.name=my_package.my_algorithm",
    "--config.algorithm.my_algorithm.coef=0.5",
    "--config.env.name=my_package.my_env",
    "--config.env.my_env.high=20",
)


def folders_with_python(top: str) -> set[str]:
    """The packages of a folder, as dotted names."""
    files = (REPO / top).rglob("*.py")
    return {".".join(path.relative_to(REPO).parent.parts) for path in files}


def test_every_folder_with_python_files_is_packaged():
    setup = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["setuptools"]
    own = folders_with_python("atod_jax")
    shipped = {f"atod_jax.{name}" for name in folders_with_python("configs")}
    assert set(setup["packages"]) == own | shipped
    assert setup["packages"] == sorted(setup["packages"])
    assert setup["package-dir"] == {"atod_jax.configs": "configs"}


def test_an_algorithm_of_an_entry_point_is_found(tmp_path, monkeypatch):
    """As another distribution would bring it, under a name that is not that of its module."""
    (tmp_path / "their_module.py").write_text(ALGORITHM)
    about = tmp_path / "theirs-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[atod_jax.algorithms]\ntheirs = their_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    plugins._entry_points.cache_clear()
    try:
        assert "theirs" in plugins.names(ALGORITHMS)
        assert plugins.load(ALGORITHMS, "theirs").Config().coef == 1.0
    finally:
        plugins._entry_points.cache_clear()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy, since setuptools leaves a build folder behind."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "atod_jax", "configs", "pyproject.toml", "README.md", "LICENSE"],
        cwd=REPO, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((REPO / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", f"--wheel-dir={out}"]
    subprocess.run([*pip, str(source)], check=True)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a fresh environment that holds the wheel.

    It sees the packages of this one, so nothing is downloaded.
    """
    venv = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (packages,) = venv.glob("lib/python*/site-packages")
    (packages / "these.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    python = venv / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--quiet", f"--python={python}", "install"]
    subprocess.run([*pip, "--no-deps", "--no-index", "--ignore-installed", str(wheel)], check=True)
    return python.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user has: plug-ins, an experiment, and a `configs` package of another project."""
    path = tmp_path_factory.mktemp("user")
    files = {
        "configs/__init__.py": "",
        "my_experiment.py": EXPERIMENT,
        "my_package/__init__.py": "",
        "my_package/my_algorithm.py": ALGORITHM,
        "my_package/my_env.py": ENVIRONMENT,
        "my_package/prompts.py": PROMPTS,
    }
    for name, text in files.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(text)
    return path


def started(program: Path, *arguments: str, cwd: Path) -> str:
    """What a program prints; fails with its errors if it does."""
    unset = {"PYTHONPATH", "PYTHONHOME", "ATOD_TRACEBACK"}
    # one device, and programs that run for milliseconds are not worth optimising
    flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    env = {k: v for k, v in os.environ.items() if k not in unset} | {"XLA_FLAGS": flags}
    run = subprocess.run(
        [program, *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, f"{program.name} {arguments}: {run.stderr[-3000:]}"
    return run.stdout


@pytest.mark.slow
def test_the_wheel_holds_one_package_and_all_its_files(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in names}
    (about,) = tops - {"atod_jax"}
    assert about.endswith(".dist-info")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "atod_jax"], cwd=REPO, capture_output=True, text=True, check=True
    )
    assert set(filter(None, listed.stdout.split("\0"))) <= names
    assert {f"atod_jax/configs/{p.name}" for p in (REPO / "configs").glob("*.py")} <= names


@pytest.mark.slow
def test_shipped_configs_are_found_from_a_folder_with_a_configs_package(installed, folder):
    code = """
import atod_jax, configs, pathlib
from atod_jax import config
assert pathlib.Path(configs.__file__).parents[1] == pathlib.Path.cwd()
for name in ("quickstart", "household:smoke", "configs/quickstart.py"):
    print(config.load(name).total_steps)
print(atod_jax.__file__)
"""
    *steps, file = started(installed / "python", "-c", code, cwd=folder).split()
    assert steps == ["60", "3", "60"]
    assert Path(file).is_relative_to(installed.parent)
    table = started(installed / "python", "-m", "atod_jax.configs.sweeps", "main_table", cwd=folder)
    assert "atod_jax.train --config=configs/webshop.py" in table
    here = started(Path(sys.executable), "-m", "configs.sweeps", "main_table", cwd=REPO)
    assert here == table


@pytest.mark.slow
def test_plug_ins_of_one_s_own_train_and_play(installed, folder):
    atod = installed / "atod"
    started(atod, "train", *PLUG_INS, "--workdir=runs/mine", cwd=folder)
    run = json.loads((folder / "runs" / "mine" / "run_config.json").read_text())
    assert run["algorithm"]["my_algorithm"] == {"coef": 0.5}
    assert run["env"]["my_env"] == {"high": 20}
    report = (folder / "runs" / "mine" / "report.md").read_text()
    assert "atod train --config=my_experiment.py" in report

    evaluated = started(atod, "evaluate", "--checkpoint=runs/mine", cwd=folder)
    assert "my_package.my_env, test: 2 tasks" in evaluated
    played = started(atod, "play", "--env=my_package.my_env", "--player=random", cwd=folder)
    assert "my_package.my_env, train: 9 tasks" in played
    options = started(atod, "train", "--config=my_experiment.py", "--help", cwd=folder)
    assert "env.template = my_package.prompts" in options


@pytest.mark.slow
def test_workers_find_an_environment_of_one_s_own(installed, folder):
    """They are processes of their own, which import it again."""
    more = ("--config.env.workers=1", "--workdir=runs/worker")
    started(installed / "atod", "train", *PLUG_INS, *more, cwd=folder)
    assert (folder / "runs" / "worker" / "report.md").is_file()


@pytest.mark.slow
def test_an_environment_needs_no_expert(installed, folder):
    """Neither where the doctor steps it once nor for a random player of a run's games."""
    code = """
from atod_jax import config, doctor
c = config.load("my_experiment.py")
config.reading.choose(c, "env", "my_package.my_env")
print(doctor.environment(config.resolve(c), "my_package.my_env"))
"""
    said = started(installed / "python", "-c", code, cwd=folder)
    assert said == "9 tasks in train; '1' is answered by 'Yes.'\n"
