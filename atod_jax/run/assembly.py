"""Builds the parts of a run from its config; shared by train, evaluate and the notebooks."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerFast

from atod_jax import config as config_lib
from atod_jax.algorithms import base
from atod_jax.core.fused import HeadConfig, Tiling
from atod_jax.device.policy import Action, Policy
from atod_jax.device.sampling import SamplingConfig
from atod_jax.device.scoring import ScoreConfig
from atod_jax.envs.pool import EnvPool, PoolConfig
from atod_jax.episodes.render import Renderer, load_tokenizer
from atod_jax.episodes.rollout import Act
from atod_jax.models import AXES, LanguageModel, ModelConfig, build, config_from_hf, hub, lora
from atod_jax.models.checkpoint_io import read_config
from atod_jax.models.loading import load_sharded
from atod_jax.models.transformer import resize_vocabulary
from atod_jax.records import RolloutPlan, Task
from atod_jax.run.layouts import Layouts
from atod_jax.sharding import Layout, param_shardings, reshard
from atod_jax.streams import Stream, key
from atod_jax.types import Signal, frozen_part, trained_part, with_frozen

ASSETS = Path(__file__).parents[1] / "assets"
FRESH = {"model_type": "qwen3", "rope_theta": 1e4, "rms_norm_eps": 1e-6}  # of new small models


class Model(NamedTuple):
    """A language model with its weights, where they live, and its tokenizer."""

    path: Path
    lm: LanguageModel
    params: Any
    tokenizer: PreTrainedTokenizerFast
    layout: Layout  # of the weights, for scoring and training
    playing: Layout  # of the copy that samples, see `to_play`


class Algorithm(NamedTuple):
    """One algorithm with its options filled in; see `algorithms.base` for the hooks."""

    signal: Callable[..., Signal]  # (batch, student, teacher, step)
    needs_teacher: Callable[[int], bool]  # (step)
    rollout_plan: Callable[[int, int], RolloutPlan]  # (step, max_turns)
    context: base.TeacherContext


class Environment(NamedTuple):
    """One task family: its module and settings, a pool of players, the renderer of prompts."""

    module: ModuleType
    settings: Any
    pool: EnvPool
    renderer: Renderer

    def tasks(self, split: str, count: int = 0) -> Sequence[Task]:
        """The first `count` tasks of a split; 0 means all."""
        tasks = self.module.tasks(self.settings, split)
        return [tasks[i] for i in range(min(count or len(tasks), len(tasks)))]


def local_path(name: str, file: str) -> Path | None:
    """A model folder by path or a shipped one, if it holds `file`."""
    for candidate in (Path(name), ASSETS / name):
        if name and (candidate / file).is_file():
            return candidate
    return None


def model_path(name: str, key_name: str, file: str) -> Path:
    """A model folder by path, a shipped one ("household/student") or a published one by name.

    Raises:
      FileNotFoundError: none of them exists with `file` in it.
    """
    local = local_path(name, file)
    if local:
        return local
    if hub.is_name(name) and not Path(name).exists() and not (ASSETS / name).parent.is_dir():
        return hub.snapshot(name, key_name)
    shipped = sorted(str(p.parent.relative_to(ASSETS)) for p in ASSETS.glob("*/*/config.json"))
    raise FileNotFoundError(
        f"{key_name}={name!r}: no folder with a {file} there; shipped models: {', '.join(shipped)}"
    )


def load(
    name: str,
    key_name: str,
    *,
    remat: str,
    layout: Layout,
    playing: Layout | None = None,
    compute: str = "float32",
    storage: str = "float32",
) -> Model:
    """Loads a Hugging Face folder, every device its own part of the weights.

    Args:
      name: see `model_path`.
      key_name: the option that named it, for messages.
      remat: see `ModelConfig`.
      layout: where its weights go.
      playing: where it samples; None: there.
      compute: type of the matrix products.
      storage: type the weights are kept in, see `load_sharded`.
    """
    path = model_path(name, key_name, "config.json")
    config = dataclasses.replace(read_config(path, dtype=compute), remat=remat)
    tokenizer = _tokenizer(path, config, key_name)
    with jax.set_mesh(layout.mesh):
        params = load_sharded(path, config, functools.partial(_shardings, layout), dtype=storage)
    return Model(path, build(config), params, tokenizer, layout, playing or layout)


def load_student(cfg: ConfigDict, layouts: Layouts) -> Model:
    """The student: the folder's weights, or a new model of the sizes in student.fresh."""
    if not cfg.student.fresh.hidden_size:
        options = {"remat": cfg.student.remat, "compute": cfg.student.dtype}
        places = {"layout": layouts.student, "playing": layouts.playing}
        student = load(cfg.student.path, "student.path", **places, **options)
        return _with_adapters(cfg, student) if cfg.student.lora_rank else student
    path, config = fresh_config(cfg)
    tokenizer = _tokenizer(path, config, "student.path")
    weights = build(config).init(key(cfg.seed, Stream.init))
    params = jax.device_put(weights, _shardings(layouts.student, weights))
    return Model(path, build(config), params, tokenizer, layouts.student, layouts.playing)


def _with_adapters(cfg: ConfigDict, student: Model) -> Model:
    """The same student, of which only student.lora_* trains."""
    rank, drawn = cfg.student.lora_rank, key(cfg.seed, Stream.adapters)
    adapters = lora.init_adapters(student.params, drawn, rank=rank)
    adapters = jax.device_put(adapters, _shardings(student.layout, adapters))
    lm = lora.adapted(student.lm, rank=rank, alpha=cfg.student.lora_alpha)
    return student._replace(lm=lm, params=with_frozen(adapters, student.params))


def fresh_config(cfg: ConfigDict) -> tuple[Path, ModelConfig]:
    """The folder of the tokenizer, and a new student of the sizes in student.fresh for it."""
    path = model_path(cfg.student.path, "student.path", "tokenizer.json")
    sizes = {"vocab_size": len(load_tokenizer(str(path))), "tie_word_embeddings": True}
    config = config_from_hf(FRESH | sizes | cfg.student.fresh.to_dict(), dtype=cfg.student.dtype)
    return path, dataclasses.replace(config, remat=cfg.student.remat)


def _shardings(layout: Layout, params: Any) -> Any:
    return param_shardings(params, AXES, layout.rules, layout.mesh)


def to_play(model: Model, params: Any) -> Any:
    """Parameters of the model where it samples: themselves, or a copy in that layout."""
    if model.playing == model.layout:
        return params
    parts = trained_part(params), frozen_part(params)
    return reshard(params, with_frozen(*(_shardings(model.playing, part) for part in parts)))


def _tokenizer(path: Path, config: ModelConfig, key_name: str) -> PreTrainedTokenizerFast:
    tokenizer = load_tokenizer(str(path))
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"{key_name}={str(path)!r}: the tokenizer has {len(tokenizer)} ids but the model's "
            f"vocab_size is {config.vocab_size}; use the tokenizer the model was trained with"
        )
    return tokenizer


def load_teacher(cfg: ConfigDict, student: Model, layouts: Layouts) -> Model | None:
    """The frozen teacher, or None when no path is given.

    Raises:
      ValueError: its tokenizer is not the student's.
    """
    if not cfg.teacher.path:
        return None
    # before any weights are read: a large teacher takes minutes
    path = model_path(cfg.teacher.path, "teacher.path", "config.json")
    _require_same_ids(cfg.teacher.path, student, load_tokenizer(str(path)))
    storage = cfg.teacher.dtype
    types = {"storage": storage, "compute": "bfloat16" if storage == "int8" else storage}
    layout = layouts.teacher
    teacher = load(cfg.teacher.path, "teacher.path", remat="none", layout=layout, **types)
    rows, theirs = student.lm.config.vocab_size, teacher.lm.config.vocab_size
    if rows == theirs:
        return teacher
    print(
        f"teacher.path={cfg.teacher.path!r}: its head has {theirs} rows, the student's {rows}, for "
        f"{len(student.tokenizer)} ids; rows without an id are dropped or added, they never count"
    )
    config = dataclasses.replace(teacher.lm.config, vocab_size=rows)
    places = functools.partial(_shardings, layout)
    with jax.set_mesh(layout.mesh):
        params = resize_vocabulary(teacher.params, rows, places)
    return teacher._replace(lm=build(config), params=params)


def _require_same_ids(name: str, student: Model, teacher: PreTrainedTokenizerFast) -> None:
    """Distillation compares the same token ids, so both models must mean the same by each."""
    ours, theirs = student.tokenizer, teacher
    if len(ours) != len(theirs):
        raise ValueError(
            f"teacher.path={name!r}: vocabulary of {len(theirs)} ids, the student's tokenizer has "
            f"{len(ours)}; choose a teacher of the same family"
        )
    special = [(t.pad_token_id, t.eos_token_id) for t in (ours, theirs)]
    if special[0] != special[1]:
        raise ValueError(
            f"teacher.path={name!r}: its (padding, end) ids are {special[1]}, the student's "
            f"{special[0]}; correct pad_token and eos_token in one tokenizer_config.json"
        )
    if tokenizer_digest(ours) != tokenizer_digest(theirs):
        raise ValueError(
            f"teacher.path={name!r}: its tokenizer differs from the student's "
            f"({student.path}); use a teacher with the same tokenizer and special tokens"
        )


def tokenizer_digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """A digest of everything that maps text to ids: vocabulary, algorithm, special ids."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    special = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    text = json.dumps([backend["model"], backend["added_tokens"], special], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def algorithm(cfg: ConfigDict) -> Algorithm:
    """The algorithm of a run."""
    module = config_lib.load_plugin("algorithms", cfg.algorithm.name)
    settings = config_lib.section(module.Config, cfg.algorithm[cfg.algorithm.name])
    return Algorithm(
        signal=functools.partial(module.signal, settings),
        needs_teacher=functools.partial(module.needs_teacher, settings),
        rollout_plan=functools.partial(base.hook(module, "rollout_plan"), settings),
        context=base.hook(module, "teacher_context")(settings),
    )


def environment(cfg: ConfigDict, tokenizer: PreTrainedTokenizerFast) -> Environment:
    """The environment side of a run."""
    module, settings, template = config_lib.environment(cfg)
    renderer = Renderer(
        tokenizer,
        template,
        history=cfg.env.history,
        longest=cfg.sampling.prompt_buckets[-1],
    )
    pool = EnvPool(
        functools.partial(module.make, settings), config_lib.section(PoolConfig, cfg.env)
    )
    return Environment(module=module, settings=settings, pool=pool, renderer=renderer)


def score_config(cfg: ConfigDict, tokenizer: PreTrainedTokenizerFast, mesh: Mesh) -> ScoreConfig:
    """How student and teacher are scored: the rollout's temperature and support."""
    head = HeadConfig(
        temperature=cfg.sampling.temperature,
        vocab=len(tokenizer),
        forbidden=(tokenizer.pad_token_id,),
        tiling=config_lib.section(Tiling, cfg.head),
        mesh=mesh,
    )
    return ScoreConfig(micro_rows=cfg.packing.micro_rows, head=head)


def policy(cfg: ConfigDict, model: Model, temperature: float, max_rows: int) -> Policy:
    """A sampler for `model` at the given temperature, for up to `max_rows` prompts of a process.

    It takes parameters as `to_play` gives them.
    """
    at_once = -(-cfg.sampling.rows // jax.process_count()) or max_rows
    sampling = SamplingConfig(
        temperature=temperature,
        top_k=cfg.sampling.top_k,
        top_p=cfg.sampling.top_p,
        max_new_tokens=cfg.sampling.max_new_tokens,
        prompt_buckets=tuple(cfg.sampling.prompt_buckets),
        max_rows=min(max_rows, at_once),
        eos_ids=(model.tokenizer.eos_token_id,),
        pad_id=model.tokenizer.pad_token_id,
        vocab=len(model.tokenizer),
        forbidden=(model.tokenizer.pad_token_id,),
    )
    return Policy(model.lm, sampling, model.playing.mesh)


def actor(policy: Policy, params: Any, key: jax.Array, slots: int) -> Act:
    """A rollout's `act` for fixed parameters; the draws of turn k come from fold_in(key, k).

    Up to `slots` prompts are sampled as many at a time as the policy takes. With several processes
    all make the same number of calls, some perhaps without a prompt of their own.
    """
    size = policy.cfg.max_rows
    pieces = [slice(first, first + size) for first in range(0, slots, size)]

    def act(prompts: Sequence[Any], rows: Sequence[int], turn: int) -> list[Action]:
        drawn = jax.random.fold_in(key, turn)
        return [a for p in pieces for a in policy.act(params, prompts[p], rows[p], drawn)]

    return act
