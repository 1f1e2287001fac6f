"""The sections of a run: what is configured, its defaults, meanings and checks."""

import dataclasses
from typing import Any

from atod_jax.core.losses import LossConfig
from atod_jax.device.optim import OptimConfig
from atod_jax.envs.pool import PoolConfig
from atod_jax.envs.templates import RULES
from atod_jax.episodes.demos import DemoConfig
from atod_jax.options.field import (
    ASCENDING,
    SEED,
    Check,
    above,
    above_to,
    at_least,
    each,
    one_of,
    option,
    within,
)
from atod_jax.results.trackers import TRACKERS
from atod_jax.sharding import MeshShape, Rules


@dataclasses.dataclass(frozen=True)
class Fresh:
    """A new Qwen3 model in place of the weights of the student's folder."""

    hidden_size: int = option(0, "width; 0 = load the folder's weights instead", at_least(0))
    num_hidden_layers: int = option(2, "layers", at_least(1))
    num_attention_heads: int = option(4, "query heads", at_least(1))
    num_key_value_heads: int = option(2, "key and value heads", at_least(1))
    head_dim: int = option(16, "width of a head", at_least(2))
    intermediate_size: int = option(192, "width of the MLP", at_least(1))


@dataclasses.dataclass(frozen=True)
class Student:
    """The model that plays and learns."""

    path: str = option("", "Hugging Face folder or name; household/<name> for a shipped one")
    fresh: Fresh = Fresh()
    dtype: str = option(
        "float32", "of its matrix products; weights stay float32", one_of("float32", "bfloat16")
    )
    remat: str = option(
        "full", "what the backward pass recomputes", one_of("none", "dots", "full"), pins=False
    )
    lora_rank: int = option(
        0, "> 0: train only adapters of this rank beside frozen matrices", at_least(0)
    )
    lora_alpha: float = option(32.0, "adapter outputs are scaled by alpha / rank", above(0))
    rules: Rules = Rules()

    def __post_init__(self):
        if self.lora_rank and self.fresh.hidden_size:
            raise ValueError(
                f"lora_rank={self.lora_rank} with student.fresh: a new model has nothing to keep; "
                "set student.lora_rank=0 or student.fresh.hidden_size=0"
            )


@dataclasses.dataclass(frozen=True)
class Teacher:
    """The frozen model that judges, where an algorithm needs one."""

    path: str = option("", "Hugging Face folder or name; unused by algorithms without a teacher")
    dtype: str = option(
        "float32",
        "of its weights; int8: matrices only, products in bfloat16",
        one_of("float32", "bfloat16", "int8"),
    )
    devices: int = option(
        0,
        "devices reserved for the teacher, taken from the end of every process; 0 = share the "
        "student's",
        at_least(0),
        pins=False,
    )
    mesh: MeshShape = MeshShape(0, 0, 0, 0)
    rules: Rules = Rules()

    def __post_init__(self):
        if self.devices and not self.path:
            raise ValueError(
                f"devices={self.devices}: give a number of devices together with teacher.path, or "
                "0 to share the student's"
            )


@dataclasses.dataclass(frozen=True)
class Env(PoolConfig):
    """What is played, how it is shown, and the environment's own options."""

    name: str = option("alfworld", "a shipped environment, an entry point, or a module of yours")
    settings: Any = None  # a Config of that environment; on the command line env.<name>.<option>
    train_split: str = option("train", "the split that training plays")
    template: str = option(
        "paper", "how an episode is shown: a template of the environment, or module[:NAME]"
    )
    thinking: bool = option(False, "the chat template may switch the model's own thinking on")
    actions: str = option(
        "answer",
        "where an action is looked for; answer: behind the last </think>, anywhere: thinking "
        "included, the first counts, as in the released code",
        one_of(*RULES),
    )
    history: int = option(2, "past (observation, command) pairs in the prompt", at_least(0))
    max_turns: int = option(50, "turns of an episode, at most", at_least(1))


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Where the experience of an iteration comes from."""

    source: str = option(
        "student",
        "who plays; expert: supervised turns; recorded: the episodes of an earlier run",
        one_of("student", "expert", "recorded"),
    )
    episodes: str = option(
        "", "with source=recorded: the workdir of a run with record=true", pins=False
    )
    tasks: int = option(16, "tasks per iteration", within(1, 2**20))
    group: int = option(8, "rollouts per task", at_least(1))


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How actions are drawn."""

    temperature: float = option(1.0, "of the training rollouts: training samples", above(0))
    top_k: int = option(0, "keep the k likeliest ids; 0 = off", at_least(0))
    top_p: float = option(
        1.0, "keep the smallest set of ids with this probability", above_to(0, 1, "1 turns it off")
    )
    max_new_tokens: int = option(512, "tokens of an action, at most", at_least(1))
    rows: int = option(
        128,
        "actions written side by side, at most; fewer need less memory",
        at_least(1),
        pins=False,
    )
    mesh: MeshShape = MeshShape(0, 0, 0, 0)
    prompt_buckets: tuple[int, ...] = option(
        (512, 1024, 2048), "compiled prompt lengths, tokens; the last is the limit", ASCENDING
    )


@dataclasses.dataclass(frozen=True)
class Packing:
    """How turns become rows of fixed-size batches."""

    minibatch_rows: int = option(256, "turns per optimiser step, at most", at_least(1))
    micro_rows: int = option(
        32, "turns per forward and backward pass, at most", at_least(1), pins=False
    )
    anchor_similarity: float = option(
        1.0, "observations this alike are one (gigpo); released search 0.9", above_to(0, 1)
    )

    def __post_init__(self):
        if self.minibatch_rows % self.micro_rows:
            raise ValueError(
                f"minibatch_rows={self.minibatch_rows}: must be a multiple of "
                f"packing.micro_rows={self.micro_rows}"
            )


@dataclasses.dataclass(frozen=True)
class Eval:
    """Playing held-out tasks."""

    split: str = option("valid_unseen", "the split that evaluations play")
    tasks: int = option(128, "while training; 0 = the whole split", at_least(0))
    final_tasks: int = option(
        0, "at the start, at the end and for the teacher; 0 = the whole split", at_least(0)
    )
    passes: int = option(
        1, "sampling seeds per task, likewise; more give pass@k and narrower intervals", at_least(1)
    )
    temperatures: tuple[float, ...] = option(
        (0.4,), "of the start, end and teacher evaluations; 0 = greedy", each(at_least(0))
    )
    curve_temperature: float = option(0.4, "of the evaluations while training", at_least(0))
    slots: int = option(128, "episodes played side by side", at_least(1), pins=False)
    every: int = option(5, "iterations between evaluations; 0 = none while training", at_least(0))
    known: str = option(
        "", "workdir of a run with the same models and tasks; its evaluations at the start and of "
        "the teacher are taken, not played again", pins=False,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Choice:
    """An algorithm by name, with its own options."""

    name: str = option("atod", "a shipped algorithm, an entry point, or a module of yours")
    settings: Any = None  # a Config of it; on the command line algorithm.<name>.<option>


@dataclasses.dataclass(frozen=True)
class Run:
    """All options; the defaults are those of the released ATOD runs where they have one."""

    seed: int = option(0, "of everything that is drawn", SEED)
    total_steps: int = option(150, "iterations: a rollout and a pass of updates each", at_least(1))
    student: Student = Student()
    teacher: Teacher = Teacher()
    env: Env = Env()
    rollout: Rollout = Rollout()
    sampling: Sampling = Sampling()
    demos: DemoConfig = DemoConfig()
    algorithm: Choice = Choice()
    loss: LossConfig = LossConfig()
    packing: Packing = Packing()
    optim: OptimConfig = OptimConfig()
    mesh: MeshShape = MeshShape()
    eval: Eval = Eval()
    save_every: int = option(25, "iterations between checkpoints", at_least(1), pins=False)
    keep_checkpoints: int = option(2, "of the latest steps", at_least(1), pins=False)
    log_transcripts: int = option(4, "episodes written per evaluation", at_least(0), pins=False)
    record: bool = option(False, "write every training episode to <workdir>/episodes", pins=False)
    track: tuple[str, ...] = option(
        (), "also keep the numbers in these: " + ", ".join(TRACKERS),
        Check(f"choose from {', '.join(TRACKERS)}", lambda names: {*names} <= {*TRACKERS}),
        pins=False,
    )  # fmt: skip
    export: str = option("", "write the final student to this Hugging Face folder", pins=False)
