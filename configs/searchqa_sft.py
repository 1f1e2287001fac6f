"""Supervised turns of the scripted expert: how the shipped search models were made.

    python -m atod_jax.train --config=configs/searchqa_sft.py:stage=teacher,export=DIR --workdir=W

Stages: `teacher`, and `student`, a smaller model that is stopped early.
"""

from ml_collections import ConfigDict

from atod_jax import config

from . import searchqa

SIZES = {
    "student": {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3,
                "num_key_value_heads": 3, "head_dim": 16, "intermediate_size": 96},
    "teacher": {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
                "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 128},
}  # fmt: skip
STEPS = {"student": 320, "teacher": 500}


def get_config(arg: str | None = None) -> ConfigDict:
    """The config of one stage."""
    v = config.parse_arg(arg, stage="teacher", export="", steps=0, seed=0)
    c = searchqa.world(config.base())
    c.seed = v.seed
    c.total_steps = v.steps or STEPS[v.stage]
    c.student.path = "searchqa/tokenizer"
    c.student.fresh.update(SIZES[v.stage])
    c.algorithm.name = "sft"
    c.rollout.source = "expert"
    c.rollout.tasks = 96
    c.rollout.group = 1
    c.demos.noise = (0.0, 0.3)
    c.optim.lr = 3e-3
    c.optim.b2 = 0.98
    c.optim.weight_decay = 0.01
    c.optim.schedule = "cosine"
    c.optim.warmup_steps = 20
    c.eval.every = 50
    c.save_every = 100
    c.export = v.export
    return c
