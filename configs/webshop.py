r"""WebShop from the official product files, played by the native shop.

    python -m atod_jax.train --config=configs/webshop.py:student=0.6b \
        --config.env.webshop.data=DIR --config.teacher.path=DIR --workdir=runs/webshop
    python -m atod_jax.train --config=configs/webshop.py:smoke --workdir=runs/shop

Variants: student=0.6b|1.7b|4b (the released runs), algo=NAME (a file of atod_jax/algorithms),
preset=released|paper (METHOD.md), seed=N, smoke. Models and hardware: as in configs/alfworld.py.
env.webshop.data is a folder with items_shuffle*.json and items_ins_v2*.json; without it a generated
shop of 288 products is visited. `smoke` plays a few steps there with the shipped tiny models and
terse prompts on a laptop: it proves the path from products to a report, it teaches nothing.
"""

from ml_collections import ConfigDict

from atod_jax import config

from . import presets

MICRO_ROWS = {"0.6b": 8, "1.7b": 8, "4b": 8}  # per GPU; released scripts


def get_config(arg: str | None = None) -> ConfigDict:
    """The released WebShop settings; `smoke` swaps in tiny models and sizes."""
    v = config.parse_arg(arg, student="0.6b", algo="atod", preset="released", smoke=False, seed=0)
    c = config.base()
    c.update_from_flattened_dict(presets.overrides(v.preset))
    c.update_from_flattened_dict(presets.models(v.student, v.algo))
    c.seed = v.seed
    c.algorithm.name = v.algo
    released(c, v.student)
    if v.smoke:
        smoke(c)
    return c


def released(c: ConfigDict, student: str) -> None:
    """What the released WebShop scripts set beside the defaults of `config.base`."""
    visits(c)
    c.rollout.tasks = 16  # script, with groups of 8
    c.packing.minibatch_rows = 64  # script
    # Rows of one pass on all devices; with fewer than 8, lower it: it never changes the numbers.
    # The scripts score with 32 (0.6b) or 16 rows per GPU; here scoring takes the same number.
    c.packing.micro_rows = presets.GPUS * MICRO_ROWS[student]
    c.algorithm.atod.anneal.steps = 80  # all scripts, and the paper
    c.eval.tasks = 128  # script
    c.eval.every = 5  # script
    c.eval.temperatures = (0.4,)  # script
    c.eval.curve_temperature = 0.4


def visits(c: ConfigDict) -> None:
    """The task: 15 turns, goals 0-499 for evaluation, all others for training."""
    c.env.name = "webshop"
    c.env.max_turns = 15  # script
    c.env.history = 2  # script
    c.eval.split = "valid"
    c.sampling.prompt_buckets = (1024, 2048, 4096)  # script: at most 4096 tokens; the others: ours


def terse(c: ConfigDict) -> None:
    """The built-in shop in compact prompts of at most 150 tokens, by the shipped tokenizer."""
    visits(c)
    c.student.path = "webshop/tokenizer"
    c.env.template = "compact"
    c.sampling.max_new_tokens = 14
    c.sampling.prompt_buckets = (56, 160, 256)
    c.student.remat = "none"
    c.packing.micro_rows = 32


def smoke(c: ConfigDict) -> None:
    """Tiny models, terse prompts, small batches."""
    terse(c)
    c.student.path = "webshop/student"
    c.teacher.path = "webshop/teacher"
    c.total_steps = 4
    c.rollout.tasks = 4
    c.rollout.group = 4
    c.packing.minibatch_rows = 64
    c.optim.lr = 1e-4
    c.algorithm.atod.anneal.steps = 2
    c.eval.tasks = 32
    c.eval.final_tasks = 64
    c.eval.every = 2
    c.eval.slots = 64
    c.save_every = 2
