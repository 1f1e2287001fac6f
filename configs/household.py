"""The embedded setting: generated household games, tiny shipped models, no download.

    python -m atod_jax.train --config=configs/household.py:algo=atod,teacher=mid --workdir=runs/atod

Variants: algo=NAME (a file of atod_jax/algorithms), teacher=mid|good, weighting=tdur|uniform|token,
preset=paper|released (METHOD.md), steps=N, seed=N, smoke; thoughts (with teacher=good): a pair of
models whose answers are a short thought and a command, about 20 tokens; rooms=large: 12 receptacles
and 40 turns.
"""

from ml_collections import ConfigDict

from atod_jax import config

from . import presets


def games(c: ConfigDict, *, thoughts: bool = False, rooms: str = "small") -> ConfigDict:
    """The task, its prompts and the shapes that fit them; shared by every household config.

    With `thoughts`, an answer is a short thought and a command: about 20 tokens instead of 4.
    Large `rooms` are searched for up to 40 turns instead of 20.
    """
    c.env.alfworld.rooms = rooms
    c.env.name = "alfworld"
    c.env.template = "compact"
    c.env.history = 2
    c.env.max_turns = 40 if rooms == "large" else 20
    c.sampling.max_new_tokens = 28 if thoughts else 6
    c.demos.thoughts = thoughts
    c.sampling.prompt_buckets = (52, 72, 160)  # garbled commands of a bad policy lengthen prompts
    c.packing.minibatch_rows = 512
    c.packing.micro_rows = 32  # fits the cache of a CPU core
    c.student.remat = "none"
    # With a penalty, groups that all fail teach nothing but valid commands, at full strength.
    for algorithm in c.algorithm.values():
        if isinstance(algorithm, ConfigDict) and "reward" in algorithm:
            algorithm.reward.invalid_penalty = 0.0
    c.eval.split = "valid_unseen"
    c.eval.temperatures = (1.0, 0.4)
    c.eval.curve_temperature = 1.0
    c.eval.tasks = 256
    c.eval.final_tasks = 512
    c.eval.every = 10
    return c


def get_config(arg: str | None = None) -> ConfigDict:
    """The config of one variant."""
    v = config.parse_arg(
        arg,
        algo="atod",
        teacher="mid",
        weighting="tdur",
        steps=180,
        seed=0,
        smoke=False,
        thoughts=False,
        rooms="small",
        preset="",
    )
    c = games(config.base(), thoughts=v.thoughts, rooms=v.rooms)
    if v.preset:
        c.update_from_flattened_dict(presets.overrides(v.preset))
    c.seed = v.seed
    c.total_steps = v.steps
    suffix = "-thoughts" if v.thoughts else ""
    c.student.path = f"household/student{suffix}"
    c.teacher.path = f"household/teacher-{v.teacher}{suffix}"
    c.algorithm.name = v.algo
    c.algorithm.atod.weighting = v.weighting
    c.algorithm.atod.anneal.steps = v.steps // 2
    c.rollout.tasks = 12
    c.rollout.group = 8
    c.optim.lr = 5e-4
    c.optim.b2 = 0.95
    c.optim.weight_decay = 0.0
    if v.smoke:
        shrink(c)
    return c


def shrink(c: ConfigDict) -> None:
    """A few steps on a few games: shows that everything runs, teaches nothing."""
    c.total_steps = 3
    c.rollout.tasks = 2
    c.rollout.group = 4
    c.env.max_turns = min(c.env.max_turns, 8)
    c.sampling.prompt_buckets = c.sampling.prompt_buckets[-1:]  # each is more to compile
    c.packing.minibatch_rows = 64
    c.eval.tasks = 16
    c.eval.final_tasks = 16
    c.eval.slots = 8
    c.eval.every = 2
    c.save_every = 2
