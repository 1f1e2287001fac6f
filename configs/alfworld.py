"""ALFWorld games from files, played by the native engine.

    python -m atod_jax.train --config=configs/alfworld.py:smoke \\
        --config.env.games=PATH/games.jsonl.xz --workdir=runs/alfworld

The official games: --config.env.games=$ALFWORLD_DATA, as `alfworld-download` fills it; add
--config.env.engine=textworld to play them in TextWorld (pip install "atod_jax[alfworld]"; slow).

Variants: algo=NAME (a file of atod_jax/algorithms), preset=released|paper (METHOD.md), smoke.
`smoke` plays a few steps with the shipped tiny models and terse prompts on a laptop: it proves the
path from real games to a report, it teaches nothing.
Without it, name the models: --config.student.path=DIR --config.teacher.path=DIR.
"""

from ml_collections import ConfigDict

from atod_jax import config, presets
from configs import household


def get_config(arg: str | None = None) -> ConfigDict:
    """The released ALFWorld settings; `smoke` swaps in tiny models and sizes."""
    v = config.parse_arg(arg, algo="atod", preset="released", smoke=False, seed=0)
    c = config.base()
    c.update_from_flattened_dict(presets.overrides(v.preset))
    c.seed = v.seed
    c.algorithm.name = v.algo
    c.env.name = "alfworld"
    if v.smoke:
        smoke(c)
    return c


def smoke(c: ConfigDict) -> None:
    """Tiny models, terse prompts, small batches."""
    household.games(c)
    c.student.path = "household/student"
    c.teacher.path = "household/teacher-mid"
    c.total_steps = 4
    c.env.max_turns = 15
    c.sampling.max_new_tokens = 8
    c.sampling.prompt_buckets = (96, 224)  # real rooms are larger than generated ones
    c.rollout.tasks = 4
    c.rollout.group = 4
    c.packing.minibatch_rows = 128
    c.optim.lr = 5e-4
    c.algorithm.atod.anneal_steps = 2
    c.eval.tasks = 32
    c.eval.final_tasks = 64
    c.eval.every = 2
    c.eval.slots = 64
    c.save_every = 2
