"""`python -m atod_jax.doctor`: what works on this machine, one green or red line each.

    python -m atod_jax.doctor
    python -m atod_jax.doctor --config.env.games=$ALFWORLD_DATA

Versions, devices, every environment started and stepped once, one generated token and one training
step with the shipped household models. A broken part does not stop the others; the exit code is 1
if anything is red. Settings come from the household smoke config, or from --config.
"""

import contextlib
import functools
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict
from rich.console import Console
from rich.text import Text

import configs
from atod_jax import config
from atod_jax.envs.base import Episode
from atod_jax.run import cli

SMALLEST = {
    "total_steps": 1,
    "env.max_turns": 1,
    "rollout.tasks": 1,
    "eval.every": 0,
    "eval.final_tasks": 2,
    "eval.temperatures": (1.0,),
    "log_transcripts": 0,
    "export": "",
}


class Check(NamedTuple):
    """One line of the list: `run` says what it found, or raises."""

    name: str
    run: Callable[[], str]


def main(cfg: ConfigDict, workdir: str) -> None:
    """The command."""
    if not examine(checks(cfg)):
        sys.exit(1)


def checks(cfg: ConfigDict) -> list[Check]:
    """All that is looked at, cheap things first."""
    bind = functools.partial
    return [
        Check("versions", versions),
        Check("devices", devices),
        *(Check(f"environment {name}", bind(environment, cfg, name)) for name in _environments()),
        Check("generation", bind(generation, cfg)),
        Check("training", bind(training, cfg)),
    ]


def examine(parts: Sequence[Check]) -> bool:
    """Runs the checks and prints a line for each; True if all went well."""
    console, healthy = Console(soft_wrap=True, highlight=False), True
    for part in parts:
        start = time.perf_counter()
        try:
            verdict, style, found = "ok", "green", part.run()
        except Exception as error:  # whatever it is, the other parts are worth knowing about
            verdict, style, healthy = "broken", "red", False
            found = f"{type(error).__name__}: {' '.join(str(error).split())}"
        seconds = time.perf_counter() - start
        line = Text.assemble((f"{verdict:7}", f"bold {style}"), f"{part.name}: {found}")
        console.print(line.append(f" ({seconds:.1f} s)", style="dim"))
    return healthy


def versions() -> str:
    """Of the packages that results depend on; one that is missing raises."""
    from atod_jax.results.report import package_versions

    return ", ".join(f"{name} {version}" for name, version in package_versions().items())


def devices() -> str:
    """Those that JAX uses, and that they can add."""
    found = jax.devices()
    if int(jax.numpy.ones(3).sum()) != 3:
        raise ArithmeticError(f"1 + 1 + 1 is not 3 on {found[0]}")
    return f"{len(found)} x {found[0].platform} ({found[0].device_kind})"


def environment(cfg: ConfigDict, name: str) -> str:
    """Starts the first task of an environment's first split and plays the expert's command.

    Says also how to get the official data.
    """
    module = config.load_plugin("envs", name)
    settings, split = config.section(module.Config, cfg.env), module.SPLITS[0]
    tasks = module.tasks(settings, split)
    with contextlib.closing(module.make(settings)) as env:
        shown = env.reset(tasks[0])
        command = module.expert.act(Episode((), shown))
        answer = env.step(command).observation.text
    played = f"{len(tasks)} tasks in {split}; {command!r} is answered by {_short(answer)!r}"
    return f"{played}; official data: {module.DATA}"


def generation(cfg: ConfigDict) -> str:
    """One token of the student for the first prompt of the configured environment."""
    from atod_jax.run import assembly
    from atod_jax.run.layouts import layouts_of

    cfg = config_of(cfg, {"sampling.max_new_tokens": 1})
    layouts = layouts_of(cfg)
    with jax.set_mesh(layouts.student.mesh):
        student = assembly.load_student(cfg, layouts)
        env = assembly.environment(cfg, student.tokenizer)
        (shown,) = env.pool.reset(env.tasks(cfg.eval.split, 1))
        policy = assembly.policy(cfg, student, 1.0, max_rows=1)
        playing = assembly.to_play(student, student.params)
        act = assembly.actor(policy, playing, jax.random.key(cfg.seed), slots=1)
        (action,) = act(env.renderer.prompts([Episode((), shown)]), [0], 0)
        env.pool.close()
    return f"{cfg.student.path} says {env.renderer.response(action.tokens)!r}"


def training(cfg: ConfigDict) -> str:
    """One iteration of the configured run, in a folder that is thrown away."""
    from atod_jax import train

    cfg = config_of(cfg, SMALLEST | {"sampling.prompt_buckets": cfg.sampling.prompt_buckets[-1:]})
    with tempfile.TemporaryDirectory() as out, _silence():
        train.main(cfg, out)
        lines = (Path(out) / "metrics.jsonl").read_text().splitlines()
    losses = [r["loss/total"] for r in map(json.loads, lines) if "loss/total" in r]
    return f"{cfg.algorithm.name} step with loss {losses[0]:.3g}"


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """A run reports on both streams; here only its outcome counts."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def config_of(cfg: ConfigDict, changes: dict) -> ConfigDict:
    """A copy with some dotted keys changed."""
    cfg = ConfigDict(cfg.to_dict())
    cfg.update_from_flattened_dict(changes)
    return cfg


def _environments() -> list[str]:
    return config.plugin_names("envs")


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= 60 else f"{words[:57]}..."


def with_smoke_config(arguments: list[str]) -> list[str]:
    """The command line with the household smoke config added where it names none."""
    if any(a.startswith("--config=") for a in arguments):
        return arguments
    return [f"--config={Path(configs.__file__).parent / 'household.py'}:smoke", *arguments]


if __name__ == "__main__":
    cli.run(main, workdir_required=False, complete=with_smoke_config)
