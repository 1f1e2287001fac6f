r"""Supervised turns on the generated shop: a scripted expert plays and says what it would do.

How the shipped shop models were made:

    python -m atod_jax.train --config=configs/webshop_sft.py:export=EARLY --workdir=runs/a
    python -m atod_jax.train --config=configs/webshop_sft.py:start=EARLY,steps=800,export=TEACHER \
        --workdir=runs/b
    python -m atod_jax.train --workdir=runs/c \
        --config=configs/webshop_sft.py:start=TEACHER,messy,steps=40,export=STUDENT

Variants: start=DIR (a model to go on from; else a fresh one over the shipped tokenizer), export=DIR
(write the result there as a Hugging Face folder), messy (the label is what was played, two moves in
three random: un-sharpens a model, whose sub-skills stay), steps=N, seed=N.
"""

from ml_collections import ConfigDict

from atod_jax import config

from . import webshop

TINY = {
    "hidden_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 20, "intermediate_size": 240,
}  # fmt: skip


def get_config(arg: str | None = None) -> ConfigDict:
    """The config of one run."""
    v = config.parse_arg(arg, start="", export="", messy=False, steps=700, seed=0)
    c = config.base()
    webshop.terse(c)
    c.seed = v.seed
    c.algorithm.name = "sft"
    if v.start:
        c.student.path = v.start
    else:
        c.student.fresh.update(TINY)
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
    if v.messy:
        c.demos.noise = (0.68, 0.68)
        c.demos.label = "executed"
        c.optim.lr = 1e-3
    c.total_steps = v.steps
    c.eval.temperatures = (0.4,)
    c.eval.every = 100
    c.eval.tasks = 64
    c.eval.final_tasks = 128
    c.save_every = 100
    c.export = v.export
    return c
