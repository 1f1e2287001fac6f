"""Supervised cold starts on scripted-expert turns: how the shipped shop models began.

    python -m atod_jax.train --config=configs/webshop_sft.py:stage=teacher --workdir=runs/t

Stages:
    teacher   expert labels on clean and disturbed visits of the generated shop
    student   the same, stopped early: a weak model
With `export=DIR` the result is written as a Hugging Face folder; both start from nothing.
"""

from ml_collections import ConfigDict

from atod_jax import config
from configs import webshop

SIZES = {
    "student": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 192},
    "teacher": {"hidden_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
                "num_key_value_heads": 2, "head_dim": 20, "intermediate_size": 240},
}  # fmt: skip
STEPS = {"student": 100, "teacher": 300}


def get_config(arg: str | None = None) -> ConfigDict:
    """The config of one stage."""
    v = config.parse_arg(arg, stage="teacher", start="", export="", steps=0, seed=0)
    c = config.base()
    webshop.terse(c)
    c.seed = v.seed
    c.algorithm.name = "sft"
    c.student.path = v.start or "webshop/tokenizer"
    if not v.start:
        c.student.fresh.update(SIZES[v.stage])
    c.rollout.source = "expert"
    c.rollout.tasks = 16
    c.rollout.group = 1
    c.demos.noise = (0.0, 0.4)
    c.packing.minibatch_rows = 64
    c.optim.lr = 4e-3
    c.optim.b2 = 0.98
    c.optim.weight_decay = 0.01
    c.optim.schedule = "cosine"
    c.optim.warmup_steps = 5
    c.total_steps = v.steps or STEPS[v.stage]
    c.eval.temperatures = (0.4,)
    c.eval.every = 100
    c.eval.tasks = 64
    c.eval.final_tasks = 128
    c.save_every = 100
    c.export = v.export
    return c
