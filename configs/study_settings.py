"""What configs/study.py compares: the methods, and the settings that they are run in."""

from collections.abc import Sequence
from types import MappingProxyType
from typing import NamedTuple

from .study_models import Options

SAME_RATE = "OPD, ATOD's rate"  # how much of a lead the learning rate makes
SMALLER = "ATOD, smaller kappa"
METHODS: dict[str, Options] = {
    "GRPO": {"algorithm.name": "grpo", "teacher.path": ""},
    "OPD": {"algorithm.name": "opd"},
    SAME_RATE: {"algorithm.name": "opd"},
    "OPD, exact KL": {"algorithm.name": "opd", "algorithm.opd.exact": True},
    # its steps are kept, for what `signals` says of them
    "ATOD": {"algorithm.name": "atod", "save_every": 10, "keep_checkpoints": 99},
    "ATOD, exact KL": {"algorithm.name": "atod", "algorithm.atod.token_signal": "exact"},
    "ATOD, not annealed": {"algorithm.name": "atod", "algorithm.atod.anneal.kind": "constant"},
    "ATOD, uniform": {"algorithm.name": "atod", "algorithm.atod.weighting": "uniform"},
    # T-DUR's mean length in thoughts, turned and large at step 20 (0.86, 0.50, 0.75 of uniform
    # weights, by `signals`) without its weights: is it more than a smaller kappa?
    SMALLER: {
        "algorithm.name": "atod",
        "algorithm.atod.weighting": "uniform",
        "algorithm.atod.anneal.kappa_start": 0.7,
        "algorithm.atod.anneal.kappa_end": 0.07,
    },
    "ATOD, mean kept": {"algorithm.name": "atod", "algorithm.atod.tdur.mean_preserving": True},
    "ATOD, token weights": {"algorithm.name": "atod", "algorithm.atod.weighting": "token"},
    "ATOD, other sign": {"algorithm.name": "atod", "algorithm.atod.weighting": "sod"},
}
CLAIMS = (
    ("ATOD", "OPD"),
    ("ATOD", "GRPO"),
    ("GRPO", "OPD"),
    ("ATOD", "teacher"),
    ("OPD", "teacher"),
)
AGAINST = (CLAIMS[0], *CLAIMS[3:])  # without GRPO, which has no teacher to differ by
ANNEALING = (("ATOD", "ATOD, not annealed"),)
KINDS = ("ATOD, uniform", SMALLER, "ATOD, mean kept", "ATOD, token weights", "ATOD, other sign")
TDUR = (*((method, KINDS[0]) for method in ("ATOD", *KINDS[1:])), ("ATOD", SMALLER))
PLAIN, TAUGHT = ("GRPO", "OPD", "ATOD"), ("OPD", "ATOD")
EXACT = (("OPD, exact KL", "OPD"), ("ATOD", "OPD, exact KL"))
AT_RATE = (("ATOD", SAME_RATE),)


class Plan(NamedTuple):
    """What is run in a setting."""

    about: str
    student: str  # of MODELS, or a shipped one
    teacher: str
    methods: Sequence[str]
    contrasts: Sequence[tuple[str, str]]
    steps: int = 60
    config: str = "configs/household.py:"
    options: Options = MappingProxyType({})
    seeds: int = 99  # at most
    few: Sequence[str] = ()  # methods that have three seeds only


THINKING = "configs/household.py:thoughts,"
ALL = (*PLAIN, SAME_RATE, *KINDS)
ASKED = (*CLAIMS, *AT_RATE, *TDUR)  # of all of them
FEW = (SAME_RATE, *KINDS[2:])
TERSE = {  # what a shop and a world of questions have in common
    "rollout.group": 8,
    "packing.minibatch_rows": 256,
    "optim.lr": 5e-4,
    "optim.weight_decay": 0.0,
    "algorithm.atod.reward.invalid_penalty": 0.0,
    "algorithm.grpo.reward.invalid_penalty": 0.0,
    "eval.temperatures": (1.0, 0.4),
    "eval.final_tasks": 0,
    "eval.tasks": 128,
    "eval.slots": 128,
}
SETTINGS = {
    "mid": Plan(
        "The same student and a mediocre teacher, the bad one after more steps of GRPO.",
        "student",
        "mid",
        (*PLAIN, SAME_RATE, "OPD, exact KL", "ATOD, not annealed", KINDS[0]),
        (*CLAIMS, *AT_RATE, *EXACT, *ANNEALING, TDUR[0]),
    ),
    "long": Plan(
        "As mid, for twice as long.",
        "student",
        "mid",
        (*PLAIN, SAME_RATE),
        (*CLAIMS, *AT_RATE),
        steps=120,
    ),
    "stopped": Plan(
        "An un-sharpened student and a bad teacher, which was stopped early; commands of 3 to 6 "
        "tokens.",
        "student",
        "stopped",
        TAUGHT,
        AGAINST,
    ),
    "good": Plan(
        "The same student and a good teacher.",
        "student",
        "good",
        TAUGHT,
        AGAINST,
    ),
    "weak": Plan(
        "A student that has only seen messy play, and the mediocre teacher.",
        "weak",
        "mid",
        PLAIN,
        CLAIMS,
        seeds=3,
    ),
    "early": Plan(
        "A student that was stopped early, and the mediocre teacher.",
        "early",
        "mid",
        PLAIN,
        CLAIMS,
        seeds=3,
    ),
    "half": Plan(
        "A student that was stopped halfway, and the mediocre teacher.",
        "half",
        "mid",
        PLAIN,
        CLAIMS,
        seeds=3,
    ),
    "thoughts": Plan(
        "Answers are a short thought and a command, about 20 tokens; nothing rises after 12 steps.",
        "student-thoughts",
        "teacher-thoughts",
        ALL,
        ASKED,
        steps=24,
        config=THINKING,
        few=FEW,
    ),
    "turned": Plan(
        "The same, but the student's thoughts say the conclusion before its reason, as the "
        "teacher's do in one turn of four: harmless disagreement on every turn.",
        "student-turned",
        "teacher-turned",
        ALL,
        ASKED,
        steps=24,
        config=THINKING,
        few=FEW,
    ),
    "foreign": Plan(
        "The same student, and a teacher that has never seen a thought in this order; for GRPO see "
        "turned.",
        "student-turned",
        "teacher-thoughts",
        TAUGHT,
        AGAINST,
        steps=24,
        config=THINKING,
        seeds=3,
    ),
    "large": Plan(
        "Rooms of 12 receptacles and 40 turns, most of them routine search.",
        "student-large",
        "teacher-large",
        ALL,
        ASKED,
        config="configs/household.py:rooms=large,",
        few=FEW,
    ),
    "shop": Plan(
        "The built-in shop with its shipped models; seeds differ in training alone.",
        "webshop/student",
        "webshop/teacher",
        PLAIN,
        CLAIMS,
        config="configs/webshop.py:smoke,",
        options={**TERSE, "rollout.tasks": 8},
        seeds=3,
    ),
    "questions": Plan(
        "The built-in world of questions with its shipped models; seeds differ in training alone.",
        "searchqa/student",
        "searchqa/teacher",
        (*PLAIN, "OPD, exact KL", "ATOD, exact KL"),
        (
            *CLAIMS,
            *EXACT,
            ("ATOD, exact KL", "OPD, exact KL"),
            ("ATOD, exact KL", "ATOD"),
        ),
        config="configs/searchqa.py:smoke,",
        options={**TERSE, "rollout.tasks": 12},
        seeds=3,
    ),
}
SETTINGS["questions-long"] = SETTINGS["questions"]._replace(
    about="As questions, for four times as long.", steps=240
)
