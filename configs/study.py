"""Where the claims of the paper hold, on generated household games: runs of many seeds.

    python -m atod_jax.study --config=configs/study.py:quick

Every seed has a student and teachers of its own, made from nothing by the shipped recipes, and
training games in an order of its own. Variants: quick (one setting, GRPO, OPD and ATOD, three
seeds), seeds=N, steps=N.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from atod_jax import config
from atod_jax.studies.plan import Cell, Job, Setting, Study

from .study_models import MODELS, Options, model, place
from .study_settings import CLAIMS, METHODS, PLAIN, SAME_RATE, SETTINGS

RATES = (2e-4, 5e-4, 1e-3)  # learning rates that are tried
TUNED = ("GRPO", "OPD", "ATOD")  # their variants take the rate of the method they vary
SWEEP_SEEDS = (5, 6)  # in no cell, so that no run is chosen that is reported
VALIDATION = {"eval.split": "valid_seen", "eval.final_tasks": 512, "eval.every": 0}


def run(setting: str, method: str, seed: int, steps: int, **more: Any) -> Job:
    """One method in one setting, before anything is tuned."""
    plan = SETTINGS[setting]
    household = "household" in plan.config
    teacher = METHODS[method].get("teacher.path", place(plan.teacher, seed))
    options = {
        "student.path": place(plan.student, seed),
        "teacher.path": teacher,
        "eval.final_tasks": 1024,
        "eval.every": max(1, steps // 5),
        **plan.options,
        **METHODS[method],
        **more,
    }
    models = [plan.student] + [plan.teacher] * bool(teacher)
    taught = sorted(plan.methods, key="GRPO".__eq__)  # GRPO last, which evaluates no teacher
    return Job(
        named(setting, method, seed),
        f"{plan.config}{f'steps={steps},' if household else ''}seed={seed}",
        seed,
        options if household else {**options, **_ending(steps)},
        tuple(f"models/{name}-{seed}" for name in models if name in MODELS),
        like=tuple(named(setting, other, seed) for other in taught if other != method),
    )


def _ending(steps: int) -> Options:
    """What household configs derive from their number of steps."""
    return {"total_steps": steps, "algorithm.atod.anneal.steps": steps // 2}


def named(setting: str, method: str, seed: int) -> str:
    """The folder of a run."""
    words = method.lower().replace("'s", "s").replace(",", "").split()
    return f"{setting}/{'-'.join(words)}-{seed}"


def sweep(method: str, seed: int, steps: int) -> list[Job]:
    """The mediocre teacher's setting with every learning rate, on validation tasks."""
    made = [run("mid", method, seed, steps, **VALIDATION, **{"optim.lr": rate}) for rate in RATES]
    return [
        Job(_tried(method, rate, seed), job.config, seed, job.options, job.needs)
        for job, rate in zip(made, RATES, strict=True)
    ]


def _tried(method: str, rate: float, seed: int) -> str:  # a folder
    return f"tuning/{method.lower()}-{rate:g}-{seed}"


AXIS = ("stopped", "mid", "good")  # teachers
POOLED = ("thoughts", "turned", "large")
QUICK = "stopped"  # whose teacher is the soonest made
SIGNALS_AT = (20, 60)  # steps
TOLD = ("mid", "stopped", "good", "thoughts", "turned", "large")  # settings


def told(setting: str, steps: int) -> list[Job]:
    """What the signals of ATOD's first seed are, early and late, in the settings that tell them."""
    name = named(setting, "ATOD", 0)
    at = [step for step in SIGNALS_AT if step <= steps] if setting in TOLD else []
    return [
        Job(
            f"{setting}/signals-{step}",
            "",
            0,
            {"rollout.tasks": 48},
            (name,),
            program="signals",
            checkpoint=f"{{out}}/runs/{name}/checkpoints/{step}",
        )
        for step in at
    ]


RATE = (
    " GRPO, OPD and ATOD have the best of three learning rates each, by validation tasks of `mid` "
    "with models of two further seeds; their variants and the other household settings take these "
    "over. The shop, the questions and the quickstart keep 5e-4."
)
MICRO_ROWS = (8, 64, 256)  # of one pass; they change the order of sums and nothing else
APART = (
    Setting(
        "rounding",
        "Seed 0 of ATOD in the first setting once more with other micro-batches each: what differs "
        "is the order of sums. What stands for seeds below is the rows of a micro-batch.",
    ),
    Setting(
        "quickstart",
        "`configs/quickstart.py` with other seeds: one student, one teacher.",
        (("ATOD", "teacher"),),
    ),
)


def apart(steps: int, seeds: Sequence[int]) -> tuple[list[Job], list[Cell]]:
    """The runs of the settings that ask how far a run moves by itself."""
    first = tuned(run("mid", "ATOD", 0, steps), "ATOD")
    again = [
        Job(f"rounding/atod-{rows}", first.config, 0, {**first.options, "packing.micro_rows": rows},
            first.needs, first.tuned, (first.name,))
        for rows in MICRO_ROWS
    ]  # fmt: skip
    quick = [
        Job(f"quickstart/atod-{seed}", "quickstart", seed, {"seed": seed, "eval.final_tasks": 1024})
        for seed in seeds
    ]
    cells = [
        Cell("rounding", "ATOD", dict(zip(MICRO_ROWS, (job.name for job in again), strict=True))),
        Cell("quickstart", "ATOD", {job.seed: job.name for job in quick}),
    ]
    return [*again, *quick], cells


def tuned(job: Job, method: str) -> Job:
    """With the learning rate that was best on validation tasks for the method, or the one that it
    is a variant of."""
    of = "ATOD" if method == SAME_RATE else method.partition(",")[0]
    names = tuple(_tried(of, rate, seed) for rate in RATES for seed in SWEEP_SEEDS)
    return dataclasses.replace(job, tuned={"optim.lr": names})


def get_study(arg: str | None = None) -> Study:
    """The study of one variant."""
    v = config.parse_arg(arg, quick=False, seeds=0, steps=0)
    if v.seeds < 0 or v.steps < 0:
        raise ValueError(f"seeds={v.seeds}, steps={v.steps}: give at least 1")
    count = v.seeds or (3 if v.quick else 5)
    seeds = [seed for seed in range(count + len(SWEEP_SEEDS)) if seed not in SWEEP_SEEDS][:count]
    names = [QUICK] if v.quick else list(SETTINGS)
    jobs: list[Job] = []
    cells: list[Cell] = []
    for setting in names:
        plan = SETTINGS[setting]
        steps = v.steps or plan.steps
        for method in PLAIN if v.quick else plan.methods:
            most = 3 if method in plan.few else plan.seeds
            made = [run(setting, method, seed, steps) for seed in seeds[:most]]
            if not v.quick and "household" in plan.config:
                made = [tuned(job, method) for job in made]
            cells.append(Cell(setting, method, {job.seed: job.name for job in made}))
            jobs += made
        jobs += [] if v.quick else told(setting, steps)
        models = {plan.student, plan.teacher} & MODELS.keys()
        for seed in seeds[: plan.seeds]:
            jobs += [job for name in sorted(models) for job in model(name, seed)]
    if not v.quick:
        for seed in SWEEP_SEEDS:
            for method in TUNED:
                jobs += sweep(method, seed, v.steps or SETTINGS["mid"].steps)
            for name in (SETTINGS["mid"].student, SETTINGS["mid"].teacher):
                jobs += model(name, seed)
        more, their = apart(v.steps or SETTINGS["mid"].steps, seeds)
        jobs, cells = [*jobs, *more], [*cells, *their]
    return Study(
        "ATOD, OPD and GRPO on generated household games",
        "Generated rooms with ALFWorld's rules and texts, tiny models: what is found here says how "
        "the methods behave here, not how they do on the benchmark." + ("" if v.quick else RATE),
        tuple(_setting(name, jobs, quick=v.quick) for name in names) + APART[: 0 if v.quick else 2],
        _linked(jobs),
        tuple(cells),
        axis=() if v.quick else AXIS,
        pooled=() if v.quick else POOLED,
    )


def _linked(jobs: Sequence[Job]) -> tuple[Job, ...]:
    """Each once, with links to those only that are among them."""
    named = {job.name: job for job in jobs}
    return tuple(
        dataclasses.replace(job, like=tuple(name for name in job.like if name in named))
        for job in named.values()
    )


def _setting(name: str, jobs: Sequence[Job], *, quick: bool) -> Setting:
    plan = SETTINGS[name]
    signals = tuple(job.name for job in jobs if job.name.startswith(f"{name}/signals-"))
    return Setting(name, plan.about, CLAIMS if quick else tuple(plan.contrasts), signals)
