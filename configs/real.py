r"""Pretrained language models on household games: a supervised start, then ATOD, OPD or GRPO.

    python -m atod_jax.train --config=real:model=DIR,export=models/student --workdir=runs/s
    python -m atod_jax.train --config=real:model=DIR,steps=32,export=models/teacher --workdir=runs/t
    python -m atod_jax.train --config=real:algo=atod,model=models/student,teacher=models/teacher \
        --workdir=runs/atod

Variants: model=NAME (smollm2, qwen2.5-coder-0.5b, another hub name, or a Hugging Face folder),
algo=NAME (sft, the default, learns from the scripted expert; the others are files of
atod_jax/algorithms), teacher=DIR (where the algorithm learns from one), size=cpu|gpu|tiny,
lora (adapters of rank 16 and a higher rate instead of all weights), steps=N, seed=N, export=DIR.

Games are generated, or real: --config.env.alfworld.games=PATH (an official folder or games.jsonl).
Prompts are compact: below 200 tokens in real rooms, where the `paper` ones take up to 750; an
action is the bare command, at most 12 tokens. A policy learns to write it, so an instruction-tuned
model solves nothing before its supervised start.

size=cpu suits two cores and 16 GB, minutes per step; size=gpu one card of 80 GB
(launch/one_gpu.sh runs all stages there); size=tiny the shipped models of 100,000 parameters.
"""

from typing import Any

from ml_collections import ConfigDict

from atod_jax import config

from . import household

MODELS = {
    "smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "qwen2.5-coder-0.5b": "Qwen/Qwen2.5-Coder-0.5B-Instruct",
    "tiny": "household/student",
}
# Of every size: what both stages share, the supervised stage, learning from play.
PLAY = {
    "cpu": {
        "env.max_turns": 20, "packing.micro_rows": 8, "sampling.rows": 32, "eval.slots": 32,
        "eval.tasks": 32, "eval.final_tasks": 32, "eval.every": 0, "save_every": 2,
    },
    "gpu": {
        "env.max_turns": 30, "packing.micro_rows": 64, "student.dtype": "bfloat16",
        "teacher.dtype": "bfloat16", "eval.tasks": 0, "eval.final_tasks": 0,
    },
    "tiny": {
        "env.max_turns": 15, "sampling.max_new_tokens": 6, "sampling.prompt_buckets": (160,),
        "eval.tasks": 64, "eval.final_tasks": 128, "eval.every": 4,
    },
}  # fmt: skip
SUPERVISED = {
    "cpu": {
        "total_steps": 8, "rollout.tasks": 14, "packing.minibatch_rows": 32, "optim.lr": 2e-4,
    },
    "gpu": {
        "total_steps": 4, "rollout.tasks": 48, "packing.minibatch_rows": 64, "optim.lr": 2e-4,
        "eval.every": 8, "save_every": 8,
    },
    "tiny": {
        "total_steps": 1, "rollout.tasks": 24, "packing.minibatch_rows": 64, "optim.lr": 2e-3,
    },
}  # fmt: skip
FROM_PLAY = {
    "cpu": {
        "total_steps": 4, "rollout.tasks": 4, "rollout.group": 4, "packing.minibatch_rows": 128,
        "optim.lr": 3e-5,
    },
    "gpu": {
        "total_steps": 16, "rollout.tasks": 8, "rollout.group": 8, "packing.minibatch_rows": 256,
        "packing.micro_rows": 256, "optim.lr": 3e-5, "eval.every": 4, "save_every": 4,
    },
    "tiny": {
        "total_steps": 8, "rollout.tasks": 8, "rollout.group": 8, "packing.minibatch_rows": 256,
        "optim.lr": 5e-4,
    },
}  # fmt: skip
ADAPTERS = {"student.lora_rank": 16, "student.lora_alpha": 32.0}
ADAPTERS_RATE = 5  # times the rate of all weights


def get_config(arg: str | None = None) -> ConfigDict:
    """The config of one stage."""
    v = config.parse_arg(
        arg, model="smollm2", algo="sft", teacher="", size="cpu", lora=False, steps=0, seed=0,
        export="",
    )  # fmt: skip
    if v.size not in PLAY:
        raise ValueError(f"size={v.size!r} is unknown; choose from {', '.join(PLAY)}")
    c = household.games(config.base())
    c.env.history = 2
    c.sampling.max_new_tokens = 16
    c.sampling.prompt_buckets = (128, 192, 256)  # garbled commands of a bad policy lengthen prompts
    c.eval.temperatures = (0.4,)
    c.eval.curve_temperature = 0.4
    c.optim.b2 = 0.95
    c.optim.weight_decay = 0.0
    c.seed = v.seed
    c.export = v.export
    c.algorithm.name = v.algo
    c.student.path = path_of(v.model)
    c.teacher.path = v.teacher
    supervised = v.algo == "sft"
    sizes: dict[str, Any] = PLAY[v.size] | (SUPERVISED if supervised else FROM_PLAY)[v.size]
    c.update_from_flattened_dict(sizes)
    if supervised:
        c.rollout.source = "expert"
        c.rollout.group = 1
        c.demos.noise = (0.0, 0.4)
        c.optim.schedule = "cosine"
    if v.lora:
        c.update_from_flattened_dict(ADAPTERS)
        c.optim.lr *= ADAPTERS_RATE
    c.total_steps = v.steps or c.total_steps
    c.algorithm.atod.anneal.steps = max(1, c.total_steps // 2)
    return c


def path_of(model: str) -> str:
    """The hub name of a short one; any other name or folder as it is."""
    return MODELS.get(model, model)
