"""Questions answered with a search engine: recorded or official sets, or a generated world.

    python -m atod_jax.train --config=configs/searchqa.py:smoke --workdir=runs/searchqa

Variants: student=0.6b|1.7b|4b (the released runs), algo=NAME (a file of atod_jax/algorithms),
preset=released|paper (METHOD.md), seed=N, smoke. Models and hardware: as in configs/alfworld.py.
`smoke` trains the shipped tiny models on the generated world on a laptop: it proves the path from
questions to a report. Without it, name questions and search engine:
--config.env.searchqa.data=FOLDER --config.env.searchqa.retriever=http://HOST:PORT
(python -m atod_jax.envs.searchqa.server starts one).
"""

from ml_collections import ConfigDict

from atod_jax import config

from . import presets

MICRO_ROWS = {"0.6b": 32, "1.7b": 16, "4b": 16}  # per GPU; released scripts


def get_config(arg: str | None = None) -> ConfigDict:
    """The released settings for search questions; `smoke` swaps in tiny models and sizes."""
    v = config.parse_arg(arg, student="0.6b", algo="atod", preset="released", smoke=False, seed=0)
    c = config.base()
    c.update_from_flattened_dict(presets.overrides(v.preset, invalid_penalty=0.01))  # script
    c.update_from_flattened_dict(presets.models(v.student, v.algo))
    c.seed = v.seed
    c.algorithm.name = v.algo
    released(c, v.student)
    if v.preset == "paper":
        _decode(c, 0.4)
    if v.smoke:
        smoke(c)
    return c


def released(c: ConfigDict, student: str) -> None:
    """What the released search scripts set beside the defaults of `config.base`."""
    questions(c)
    c.rollout.tasks = 128  # script, with groups of 8
    c.sampling.prompt_buckets = (512, 1024, 2048, 4096)  # script: at most 4096; the others: ours
    c.packing.minibatch_rows = 256  # script
    # Rows of one pass on all devices; with fewer than 8, lower it: it never changes the numbers.
    # The scripts score with 32 rows per GPU for all sizes; here scoring takes the same number.
    c.packing.micro_rows = presets.GPUS * MICRO_ROWS[student]
    c.optim.warmup_steps = 15  # script: a tenth of the 150 updates
    c.algorithm.atod.anneal.steps = 80  # all scripts, and the paper
    c.eval.tasks = 2048  # script
    c.eval.slots = 512  # script: the size of its validation batches
    c.eval.every = 15  # script
    _decode(c, 0.0)  # script: greedy, by a default; the paper says 0.4


def _decode(c: ConfigDict, temperature: float) -> None:
    c.eval.temperatures = (temperature,)
    c.eval.curve_temperature = temperature


def questions(c: ConfigDict) -> ConfigDict:
    """The task: four turns, all of them shown, 1 for an exact match."""
    c.env.name = "searchqa"
    c.env.template = "paper"
    c.env.history = 4  # script
    c.env.max_turns = 4  # script
    c.env.searchqa.win_reward = 1.0
    c.env.timeout = 600.0  # a search is tried ten times, half a minute each, before it fails
    c.env.train_split = "train"
    c.eval.split = "test"
    return c


def world(c: ConfigDict) -> ConfigDict:
    """The generated world with terse prompts, and the shapes that fit them."""
    questions(c)
    c.env.template = "compact"
    c.sampling.max_new_tokens = 6
    c.env.searchqa.topk = 1
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
    c.optim.warmup_steps = 0
    c.rollout.tasks = 8
    c.optim.lr = 5e-4
    c.algorithm.atod.anneal.steps = 3
    c.sampling.prompt_buckets = (64, 192)  # every length is one more program to compile
    c.eval.every = 3
    c.eval.temperatures = (1.0,)
    c.eval.final_tasks = 128
    c.save_every = 3
