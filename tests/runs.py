"""Small runs for tests: random models, a config of seconds, what a run has left."""

import base64
import gzip
import json
import re
from pathlib import Path

import jax
from ml_collections import ConfigDict

from atod_jax import config, train
from atod_jax.episodes.render import load_tokenizer
from atod_jax.models import build, config_from_hf
from atod_jax.models.checkpoint_io import save_hf
from atod_jax.run import models as run_models
from atod_jax.run.layouts import Layouts, layouts_of
from configs import household

TOKENIZER = run_models.ASSETS / "household" / "tokenizer"


def save_random_model(folder, *, vocab_size=None, hidden=16, seed=0, tokenizer=TOKENIZER, **sizes):
    loaded = load_tokenizer(str(tokenizer))
    sizes = {
        "vocab_size": vocab_size or len(loaded), "hidden_size": hidden, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
        "intermediate_size": 32, "tie_word_embeddings": True,
    } | sizes  # fmt: skip
    model = config_from_hf(run_models.FRESH | sizes)
    params = jax.tree.map(lambda x: 3 * x, build(model).init(jax.random.key(seed)))
    save_hf(folder, model, params, tokenizer=loaded)
    return str(folder)


def smoke_config(models, algo="atod", **changes) -> ConfigDict:
    c = household.get_config(f"algo={algo},smoke")
    c.student.path, c.teacher.path = models
    c.env.max_turns = 3
    c.sampling.prompt_buckets = (160,)
    c.rollout.tasks, c.rollout.group = 2, 4
    c.packing.minibatch_rows, c.packing.micro_rows = 16, 8
    c.eval.tasks = c.eval.final_tasks = c.eval.slots = 8
    c.eval.temperatures = (1.0,)
    if algo == "sft":
        c.rollout.source = "expert"
    c.update_from_flattened_dict(changes)
    return c


def typed(c: ConfigDict, **changes) -> config.Run:
    """The options that a config resolves to, with changes by path."""
    c = ConfigDict(c.to_dict())
    c.update_from_flattened_dict(changes)
    return config.resolve(c, model_required=False)


def start(c: ConfigDict, folder: str | Path) -> None:
    """A training run."""
    train.main(typed(c), str(folder))


def load_models(c: ConfigDict, layouts: Layouts | None = None):
    """(layouts, student, teacher or None) of a config."""
    cfg = typed(c)
    layouts = layouts or layouts_of(cfg)
    student = run_models.load_student(cfg.student, layouts, seed=cfg.seed)
    return layouts, student, run_models.load_teacher(cfg.teacher, student, layouts)


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_times(folder: Path) -> list[dict]:
    timed = ("seconds/", "env/", "rollout/kept_steps", "batch/useful_tokens")  # or of a layout
    return [{k: v for k, v in r.items() if not k.startswith(timed)} for r in records(folder)]


def steps_that_compile(c: ConfigDict, folder: Path) -> list[int]:
    """The steps of a run of 5 in which something is compiled, as often as it is."""
    c.total_steps, c.eval.every, c.save_every = 5, 0, 100
    compiled = []
    step = [0]

    def listen(event, duration, **kwargs):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(step[0])

    jax.monitoring.register_event_duration_secs_listener(listen)
    original = train.iteration_scalars

    def count(*args, **kwargs):
        step[0] += 1
        return original(*args, **kwargs)

    train.iteration_scalars = count
    try:
        start(c, folder)
    finally:
        train.iteration_scalars = original
        jax.monitoring.unregister_event_duration_listener(listen)
    return compiled


def pooled(means):
    """The metrics of an update, added up by name."""
    result = {}
    for some in means:
        result |= {name: result[name] + m if name in result else m for name, m in some.items()}
    return result


def page_content(page):
    """What a page of `view` shows."""
    (packed,) = re.findall(r'<script id="data" type="text/plain">(.*?)</script>', page.read_text())
    return json.loads(gzip.decompress(base64.b64decode(packed)))
