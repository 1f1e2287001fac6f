"""Supervised cold starts on scripted-expert turns: how the shipped household models began.

    python -m atod_jax.train --config=configs/household_sft.py:stage=student_base --workdir=runs/s0

Stages (run in this order; launch/household_models.sh runs them all):
    student_base   a small model learns the expert's moves on clean and disturbed play
    student        the same model, un-sharpened on very noisy play (label = what was played):
                   weak at the game, but every sub-skill is there to be sharpened again
    student_weak   a small model that has only ever seen very noisy play: weak from the start
    student_early  the base, stopped before it is any good
    teacher_good   a larger model on strongly disturbed play with the expert's labels
    teacher_mid    the same, stopped early
With `thoughts` every answer is a short thought and a command, `turned` is the share of thoughts
whose conclusion comes before its reason; `rooms=large` plays rooms of 12 receptacles for 40 turns.
"""

from ml_collections import ConfigDict

from atod_jax import config

from . import household

SIZES = {
    "student": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 192},
    "teacher": {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 6,
                "num_key_value_heads": 3, "head_dim": 16, "intermediate_size": 384},
}  # fmt: skip


def get_config(arg: str | None = None) -> ConfigDict:
    """The config of one stage."""
    v = config.parse_arg(
        arg,
        stage="student_base",
        start="",
        export="",
        steps=0,
        seed=0,
        thoughts=False,
        turned=0.0,
        rooms="small",
    )
    c = household.games(config.base(), thoughts=v.thoughts, rooms=v.rooms)
    c.demos.turned = v.turned
    c.seed = v.seed
    c.algorithm.name = "sft"
    c.rollout.source = "expert"
    c.rollout.tasks = 48
    c.rollout.group = 1
    c.packing.minibatch_rows = 128
    c.optim.b2 = 0.98
    c.optim.weight_decay = 0.01
    c.optim.schedule = "cosine"
    c.optim.warmup_steps = 5
    c.eval.every = 50
    c.eval.tasks = 128
    c.eval.final_tasks = 128  # untrained models babble to the turn limit, which takes its time
    c.save_every = 50
    c.export = v.export
    STAGES[v.stage](c)
    c.total_steps = v.steps or c.total_steps
    c.student.path = v.start or c.student.path
    return c


def student_base(c: ConfigDict) -> None:
    """Expert labels on clean and mildly disturbed play."""
    _fresh(c, "student")
    c.total_steps = 250
    c.optim.lr = 3e-3
    c.demos.noise = (0.0, 0.3)


def student(c: ConfigDict) -> None:
    """Un-sharpens the base: the label is the command that was played, two in three random."""
    c.total_steps = 40
    c.optim.lr = 1e-3
    c.demos.noise = (0.68, 0.68)
    c.demos.label = "executed"


def student_weak(c: ConfigDict) -> None:
    """Mistakes and all: the label is the command that was played, one to nine in ten random."""
    _fresh(c, "student")
    c.total_steps = 250
    c.optim.lr = 3e-3
    c.demos.noise = (0.3, 0.9)
    c.demos.label = "executed"


def student_early(c: ConfigDict) -> None:
    """The skilled base, stopped after a sixth of its steps."""
    student_base(c)
    c.total_steps = 40


def teacher_mid(c: ConfigDict) -> None:
    """A mediocre teacher: the good one's recipe, stopped early."""
    teacher_good(c)
    c.total_steps = 150


def teacher_good(c: ConfigDict) -> None:
    """A good teacher: expert labels on strongly disturbed play."""
    _fresh(c, "teacher")
    c.total_steps = 250
    c.optim.lr = 3e-3
    c.demos.noise = (0.0, 0.5)


def _fresh(c: ConfigDict, size: str) -> None:
    c.student.path = "household/tokenizer"
    c.student.fresh.update(SIZES[size])


STAGES = {
    f.__name__: f
    for f in (student_base, student, student_weak, student_early, teacher_mid, teacher_good)
}
