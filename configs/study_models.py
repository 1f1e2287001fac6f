"""The students and teachers of configs/study.py, and how each is made."""

from collections.abc import Iterator, Mapping
from typing import Any

from atod_jax.studies.plan import Job

Options = Mapping[str, Any]

SFT, RL = "configs/household_sft.py", "configs/household_teacher.py"
# name -> config, what it starts from, more options
MODELS: dict[str, tuple[str, str, Options]] = {
    "base": (f"{SFT}:stage=student_base", "", {}),
    "student": (f"{SFT}:stage=student", "base", {}),
    "weak": (f"{SFT}:stage=student_weak", "", {}),
    "early": (f"{SFT}:stage=student_early", "", {}),
    "half": (f"{SFT}:stage=student_base,steps=120", "", {}),
    "good-sft": (f"{SFT}:stage=teacher_good", "", {}),
    "good": (f"{RL}:steps=24", "good-sft", {"algorithm.grpo.reward.invalid_penalty": 0.1}),
    "stopped": (f"{SFT}:stage=teacher_mid", "", {}),
    "mid": (f"{RL}:steps=70", "stopped", {}),
    "base-thoughts": (f"{SFT}:stage=student_base,thoughts", "", {}),
    "student-thoughts": (f"{SFT}:stage=student,thoughts", "base-thoughts", {}),
    "base-turned": (f"{SFT}:stage=student_base,thoughts,turned=1", "", {}),
    "student-turned": (f"{SFT}:stage=student,thoughts,turned=1", "base-turned", {}),
    "teacher-thoughts": (f"{SFT}:stage=teacher_mid,thoughts", "", {}),
    "teacher-turned": (f"{SFT}:stage=teacher_mid,thoughts,turned=0.25", "", {}),
    "base-large": (f"{SFT}:stage=student_base,rooms=large", "", {}),
    "student-large": (f"{SFT}:stage=student,rooms=large", "base-large", {}),
    "teacher-large": (f"{SFT}:stage=teacher_mid,rooms=large", "", {}),
}


def model(name: str, seed: int) -> Iterator[Job]:
    """The run that makes a model, after those that make what it starts from."""
    recipe, start, options = MODELS[name]
    if start:
        yield from model(start, seed)
    begin = f",start={place(start, seed)}" if start else ""
    yield Job(
        f"models/{name}-{seed}",
        f"{recipe},seed={seed}{begin}",
        seed,
        {"export": place(name, seed), "eval.every": 0, **options},
        (f"models/{start}-{seed}",) if start else (),
    )


def place(name: str, seed: int) -> str:
    """Where a model is."""
    return f"{{out}}/models/{name}-{seed}" if name in MODELS else name
