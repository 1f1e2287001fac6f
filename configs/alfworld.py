r"""ALFWorld games from files, played by the native engine.

    python -m atod_jax.train --config=configs/alfworld.py:smoke \
        --config.env.alfworld.games=PATH/games.jsonl.xz --workdir=runs/alfworld

The official games: --config.env.alfworld.games=$ALFWORLD_DATA, as `alfworld-download` fills it.
--config.env.alfworld.engine=textworld plays them in TextWorld (pip install alfworld==0.4.2; slow).

Variants: student=0.6b|1.7b|4b (the released runs), algo=NAME (a file of atod_jax/algorithms),
preset=released|paper (METHOD.md), seed=N, smoke.
`smoke` plays a few steps with the shipped tiny models and terse prompts on a laptop: it proves the
path from real games to a report, it teaches nothing.
Without it the models are Hugging Face folders of the names in configs/presets.py, relative to
where the run starts (`hf download Qwen/Qwen3-0.6B --local-dir Qwen/Qwen3-0.6B`), or any others:
--config.student.path=DIR --config.teacher.path=DIR. The released teachers were trained on the task
first: `python -m configs.sweeps teachers` prints how, `main_table` the runs that use them.
Hardware of the released runs: 8 GPUs of one machine.
"""

from ml_collections import ConfigDict

from atod_jax import config

from . import household, presets

MICRO_ROWS = {"0.6b": 32, "1.7b": 32, "4b": 32}  # per GPU; released scripts
ANNEAL_STEPS = {"0.6b": 80, "1.7b": 150, "4b": 80}  # released scripts; the paper has 80 throughout


def get_config(arg: str | None = None) -> ConfigDict:
    """The released ALFWorld settings; `smoke` swaps in tiny models and sizes."""
    v = config.parse_arg(arg, student="0.6b", algo="atod", preset="released", smoke=False, seed=0)
    c = config.base()
    c.update_from_flattened_dict(presets.overrides(v.preset))
    c.update_from_flattened_dict(presets.models(v.student, v.algo))
    c.seed = v.seed
    c.algorithm.name = v.algo
    released(c, v.student)
    if v.preset == "paper":
        c.algorithm.atod.anneal.steps = 80
    if v.smoke:
        smoke(c)
    return c


def released(c: ConfigDict, student: str) -> None:
    """What the released ALFWorld scripts set beside the defaults of `config.base`."""
    c.env.name = "alfworld"
    c.env.max_turns = 50  # script
    c.env.history = 2  # script
    c.rollout.tasks = 16  # script, with groups of 8
    c.sampling.prompt_buckets = (512, 1024, 2048)  # script: at most 2048 tokens; the others: ours
    c.packing.minibatch_rows = 256  # script
    # Rows of one pass on all devices; with fewer than 8, lower it: it never changes the numbers.
    c.packing.micro_rows = presets.GPUS * MICRO_ROWS[student]
    c.algorithm.atod.anneal.steps = ANNEAL_STEPS[student]
    c.eval.split = "valid_seen"  # script: the split "in distribution"
    c.eval.tasks = 128  # script
    c.eval.every = 5  # script
    c.eval.temperatures = (0.4,)  # script
    c.eval.curve_temperature = 0.4


def smoke(c: ConfigDict) -> None:
    """Tiny models, terse prompts, small batches."""
    household.games(c)
    c.student.path = "household/student"
    c.teacher.path = "household/teacher-mid"
    c.total_steps = 4
    c.env.max_turns = 15
    c.sampling.max_new_tokens = 8
    c.sampling.prompt_buckets = (224,)  # real rooms are larger than generated ones
    c.rollout.tasks = 4
    c.rollout.group = 4
    c.packing.minibatch_rows = 128
    c.optim.lr = 5e-4
    c.algorithm.atod.anneal.steps = 2
    c.eval.tasks = 32
    c.eval.final_tasks = 64
    c.eval.every = 2
    c.eval.slots = 16
    c.save_every = 2
