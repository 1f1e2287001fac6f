"""Sets of runs: `python -m configs.sweeps NAME [--task=TASK] [more options]`, one command per line.

    python -m configs.sweeps ablations --task=alfworld --config.total_steps=100 | bash

Options that are not known here go to every command. Every command is its own workdir and resumes
where it stopped, so a sweep can be printed and run again; sweeps share the runs they have in
common. atod_jax/guides/a_pod.md says how to hand the lines to a cluster.
"""

import argparse
import shlex

from .presets import MODELS

TASKS = ("alfworld", "webshop", "searchqa")
STUDENTS = tuple(MODELS)
ALGORITHMS = ("grpo", "sdar", "opd", "sod", "tcod", "atod")
ABLATIONS = {
    "no-annealing": {"config.algorithm.atod.anneal.kind": "constant"},  # both factors stay 1
    "token": {"config.algorithm.atod.weighting": "token"},
    "no-tdur": {"config.algorithm.atod.weighting": "uniform"},
}

Run = dict[str, str]  # option -> value, without the dashes


def run(task: str, student: str, algo: str, label: str = "", **options: str) -> Run:
    """One run, in a workdir that its arguments name."""
    name = "-".join(filter(None, (task, student, algo, label)))
    config = f"configs/{task}.py:student={student},algo={algo}"
    return {"config": config, "workdir": f"runs/{name}"} | options


def teachers(task: str) -> list[Run]:
    """GRPO on the task of the two models that teach: the 4B one, itself a student, and the large.

    How the authors' teachers were trained is not known beyond the method; these take its settings.
    """
    large = {"config.student.path": MODELS["4b"][1], "config.export": large_teacher(task)}
    return [
        run(task, "4b", "grpo", **{"config.export": small_teacher(task)}),
        run(task, "4b", "grpo", "large", **large),
    ]


def small_teacher(task: str) -> str:
    """Where `teachers` leaves the teacher of the 0.6B and 1.7B students."""
    return f"runs/teachers/{task}-4b"


def large_teacher(task: str) -> str:
    """Where `teachers` leaves the teacher of the 4B student."""
    return f"runs/teachers/{task}-large"


def taught(task: str, student: str, algo: str, label: str = "", **options: str) -> Run:
    """A run that learns from a trained teacher, if its algorithm learns from one."""
    if algo not in ("grpo", "sdar"):
        teacher = large_teacher(task) if student == "4b" else small_teacher(task)
        options = {"config.teacher.path": teacher} | options
    return run(task, student, algo, label, **options)


def main_table(task: str) -> list[Run]:
    """Every algorithm with every student; the 4B student's GRPO run is the small teacher's."""
    pairs = [(s, a) for s in STUDENTS for a in ALGORITHMS if (s, a) != ("4b", "grpo")]
    return [*teachers(task), *(taught(task, s, a) for s, a in pairs)]


def ablations(task: str) -> list[Run]:
    """ATOD with every student: whole, and with one part taken away; the paper's are on ALFWorld."""
    return [
        taught(task, student, "atod", label, **options)
        for student in STUDENTS
        for label, options in {"": {}, **ABLATIONS}.items()
    ]


def command(options: Run, *more: str) -> str:
    """The line that starts, or resumes, a run."""
    words = (f"--{key}={value}" for key, value in options.items())
    return shlex.join([".venv/bin/python", "-m", "atod_jax.train", *words, *more])


SWEEPS = {f.__name__: f for f in (teachers, main_table, ablations)}


def main() -> None:
    """Prints the commands of one sweep."""
    parser = argparse.ArgumentParser(prog="python -m configs.sweeps", allow_abbrev=False)
    parser.add_argument("name", choices=SWEEPS)
    parser.add_argument("--task", choices=TASKS, help="only this one")
    chosen, rest = parser.parse_known_args()
    for task in [chosen.task] if chosen.task else TASKS:
        for options in SWEEPS[chosen.name](task):
            print(command(options, *rest))


if __name__ == "__main__":
    main()
