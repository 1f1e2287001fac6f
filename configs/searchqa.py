"""Questions answered with a search engine: recorded or official sets, or a generated world.

    python -m atod_jax.train --config=configs/searchqa.py:smoke --workdir=runs/searchqa

Variants: algo=NAME (a file of atod_jax/algorithms), preset=released|paper (METHOD.md), smoke.
`smoke` trains the shipped tiny models on the generated world on a laptop: it proves the path from
questions to a report. Without it, name models, questions and search engine:
--config.student.path=DIR --config.teacher.path=DIR --config.env.data=FOLDER
--config.env.retriever=http://HOST:PORT (python -m atod_jax.envs.searchqa.server starts one).
"""

from ml_collections import ConfigDict

from atod_jax import config, presets


def get_config(arg: str | None = None) -> ConfigDict:
    """The released settings for search questions; `smoke` swaps in tiny models and sizes."""
    v = config.parse_arg(arg, algo="atod", preset="released", smoke=False, seed=0)
    c = config.base()
    c.update_from_flattened_dict(presets.overrides(v.preset))
    c.seed = v.seed
    c.algorithm.name = v.algo
    questions(c)
    c.sampling.prompt_buckets = (512, 1024, 2048, 4096)
    c.rollout.tasks = 128
    c.rollout.group = 8
    c.eval.tasks = 2048
    c.eval.slots = 512
    if v.smoke:
        smoke(c)
    return c


def questions(c: ConfigDict) -> ConfigDict:
    """The task: four turns, all of them shown, 1 for an exact match."""
    c.env.name = "searchqa"
    c.env.template = "paper"
    c.env.history = 4
    c.env.max_turns = 4
    c.env.win_reward = 1.0
    c.env.timeout = 600.0  # a search is tried ten times, half a minute each, before it fails
    c.env.train_split = "train"
    c.eval.split = "test"
    return c


def world(c: ConfigDict) -> ConfigDict:
    """The generated world with terse prompts, and the shapes that fit them."""
    questions(c)
    c.env.template = "compact"
    c.sampling.max_new_tokens = 6
    c.env.topk = 1
    c.sampling.prompt_buckets = (32, 64, 192)  # garbled queries of a bad policy lengthen prompts
    c.packing.minibatch_rows = 128
    c.packing.micro_rows = 32
    c.student.remat = "none"
    c.eval.temperatures = (1.0, 0.4)
    c.eval.curve_temperature = 1.0
    c.eval.tasks = 128
    c.eval.final_tasks = 256
    c.eval.slots = 128
    return c


def smoke(c: ConfigDict) -> None:
    """Tiny models, the generated world, small batches."""
    world(c)
    c.student.path = "searchqa/student"
    c.teacher.path = "searchqa/teacher"
    c.total_steps = 6
    c.rollout.tasks = 8
    c.optim.lr = 5e-4
    c.algorithm.atod.anneal_steps = 3
    c.sampling.prompt_buckets = (64, 192)  # every length is one more program to compile
    c.eval.every = 3
    c.eval.temperatures = (1.0,)
    c.eval.final_tasks = 128
    c.save_every = 3
