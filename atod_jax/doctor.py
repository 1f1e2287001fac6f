"""What works on this machine, one green or red line each.

    python -m atod_jax.doctor
    python -m atod_jax.doctor --config.env.alfworld.games=$ALFWORLD_DATA

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
from rich.console import Console
from rich.text import Text

from atod_jax import config
from atod_jax.config import Run
from atod_jax.envs.base import Episode
from atod_jax.envs.pool import Failure
from atod_jax.options import plugins
from atod_jax.options.plugins import ENVIRONMENTS
from atod_jax.records import Request
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


def checks(cfg: Run) -> list[Check]:
    """All that is looked at, cheap things first."""
    bind = functools.partial
    return [
        Check("versions", versions),
        Check("devices", devices),
        *(
            Check(f"environment {name}", bind(environment, cfg, name))
            for name in _environments(cfg)
        ),
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
    from atod_jax.results.provenance import package_versions

    return ", ".join(f"{name} {version}" for name, version in package_versions().items())


def devices() -> str:
    """Those that JAX uses, and that they can add."""
    found = jax.devices()
    if int(jax.numpy.ones(3).sum()) != 3:
        raise ArithmeticError(f"1 + 1 + 1 is not 3 on {found[0]}")
    return f"{len(found)} x {found[0].platform} ({found[0].device_kind})"


def environment(cfg: Run, name: str) -> str:
    """Starts the first task of an environment's first split and plays a command: the expert's, or
    the first that is offered.

    Says also how to get the official data.
    """
    plugin = plugins.load(ENVIRONMENTS, name)
    own = name == cfg.env.name
    settings, split = cfg.env.settings if own else plugin.Config(), plugin.splits[0]
    tasks = plugin.tasks(settings, split)
    with contextlib.closing(plugin.make(settings, cfg.env.max_turns)) as env:
        shown = env.reset(tasks[0])
        command = plugin.expert.act(Episode((), shown)) if plugin.expert else ""
        command = command or next(iter(shown.commands), "look")
        answer = env.step(command).observation.text
    played = f"{len(tasks)} tasks in {split}; {command!r} is answered by {_short(answer)!r}"
    return f"{played}; official data: {plugin.data}" if plugin.data else played


def generation(cfg: Run) -> str:
    """One token of the student for the first prompt of the configured environment."""
    from atod_jax.run import models, parts
    from atod_jax.run.layouts import layouts_of

    cfg = config.changed(cfg, {"sampling.max_new_tokens": 1})
    layouts = layouts_of(cfg)
    with jax.set_mesh(layouts.student.mesh):
        student = models.load_student(cfg.student, layouts, seed=cfg.seed)
        env = parts.environment(cfg, student.tokens)
        (shown,) = env.pool.reset(env.tasks(cfg.eval.split, 1))
        assert not isinstance(shown, Failure), shown
        policy = parts.policy(cfg.sampling, student, temperature=1.0, episodes=1)
        weights = models.to_sampling(student, student.params)
        sampler = policy.sampler(weights, jax.random.key(cfg.seed))
        (prompt,) = env.renderer.prompts([Episode((), shown)])
        sampler.submit([Request(row=0, turn=0, prompt=prompt)])
        ((_, action),) = sampler.advance(1) or []
        env.pool.close()
    return f"{cfg.student.path} says {env.renderer.response(action.tokens)!r}"


def training(cfg: Run) -> str:
    """One iteration of the configured run, in a folder that is thrown away."""
    from atod_jax import train

    longest = {"sampling.prompt_buckets": cfg.sampling.prompt_buckets[-1:]}
    with tempfile.TemporaryDirectory() as out, _silence():
        train.main(config.changed(cfg, SMALLEST | longest), out)
        lines = (Path(out) / "metrics.jsonl").read_text().splitlines()
    losses = [r["loss/total"] for r in map(json.loads, lines) if "loss/total" in r]
    return f"{cfg.algorithm.name} step with loss {losses[0]:.3g}"


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """A run reports on both streams; here only its outcome counts."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _environments(cfg: Run) -> list[str]:
    return sorted({*plugins.names(ENVIRONMENTS), cfg.env.name})


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= 60 else f"{words[:57]}..."


def start(cfg: Run, flags: cli.Flags) -> None:
    """Examines this machine; exit code 1 if anything is broken."""
    if not examine(checks(cfg)):
        sys.exit(1)


PROGRAM = cli.Program(
    "doctor", __doc__, start, fallback=lambda flags: config.load("household:smoke")
)

if __name__ == "__main__":
    cli.run(PROGRAM)
