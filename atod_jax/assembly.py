"""Builds the parts of a run from its config; shared by train, evaluate and the notebooks."""

import dataclasses
import functools
import hashlib
import json
import math
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
from atod_jax.envs.pool import EnvPool, PoolConfig
from atod_jax.models import AXES, LanguageModel, ModelConfig, build, config_from_hf
from atod_jax.models.checkpoint_io import load_hf
from atod_jax.records import RolloutPlan, Task
from atod_jax.render import Renderer, load_tokenizer
from atod_jax.rollout import Act
from atod_jax.sampling import Policy, SamplingConfig
from atod_jax.scoring import ScoreConfig
from atod_jax.sharding import RULES, local_shards, make_mesh, param_shardings
from atod_jax.streams import Stream, key
from atod_jax.types import Signal

ASSETS = Path(__file__).parent / "assets"
FRESH = {"model_type": "qwen3", "rope_theta": 1e4, "rms_norm_eps": 1e-6}  # of new small models


class Model(NamedTuple):
    """A language model with its weights and tokenizer."""

    path: Path
    lm: LanguageModel
    params: Any
    tokenizer: PreTrainedTokenizerFast


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


def model_path(name: str, key_name: str, file: str) -> Path:
    """A model folder by path, or a shipped one by name such as "household/student".

    Raises:
      FileNotFoundError: neither exists with `file` in it.
    """
    for candidate in (Path(name), ASSETS / name):
        if name and (candidate / file).is_file():
            return candidate
    shipped = sorted(str(p.parent.relative_to(ASSETS)) for p in ASSETS.glob("*/*/config.json"))
    raise FileNotFoundError(
        f"{key_name}={name!r}: no folder with a {file} there; shipped models: {', '.join(shipped)}"
    )


def load(name: str, key_name: str, *, remat: str, mesh: Mesh) -> Model:
    """Loads a Hugging Face folder, weights placed on the mesh."""
    path = model_path(name, key_name, "config.json")
    config, weights = load_hf(path)
    return _place(path, dataclasses.replace(config, remat=remat), weights, key_name, mesh)


def load_student(cfg: ConfigDict, mesh: Mesh) -> Model:
    """The student: the folder's weights, or a new model of the sizes in student.fresh."""
    if not cfg.student.fresh.hidden_size:
        return load(cfg.student.path, "student.path", remat=cfg.student.remat, mesh=mesh)
    path = model_path(cfg.student.path, "student.path", "tokenizer.json")
    sizes = {"vocab_size": len(load_tokenizer(str(path))), "tie_word_embeddings": True}
    lm_config = config_from_hf(FRESH | sizes | cfg.student.fresh.to_dict())
    lm_config = dataclasses.replace(lm_config, remat=cfg.student.remat)
    weights = build(lm_config).init(key(cfg.seed, Stream.init))
    return _place(path, lm_config, weights, "student.path", mesh)


def _place(path: Path, config: ModelConfig, weights: Any, key_name: str, mesh: Mesh) -> Model:
    tokenizer = load_tokenizer(str(path))
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"{key_name}={str(path)!r}: the tokenizer has {len(tokenizer)} ids but the model's "
            f"vocab_size is {config.vocab_size}; use the tokenizer the model was trained with"
        )
    params = jax.device_put(weights, param_shardings(weights, AXES, RULES, mesh))
    return Model(path=path, lm=build(config), params=params, tokenizer=tokenizer)


def load_teacher(cfg: ConfigDict, student: Model, mesh: Mesh) -> Model | None:
    """The frozen teacher, or None when no path is given.

    Raises:
      ValueError: its vocabulary or tokenizer is not the student's.
    """
    if not cfg.teacher.path:
        return None
    teacher = load(cfg.teacher.path, "teacher.path", remat="none", mesh=mesh)
    ours, theirs = student.lm.config.vocab_size, teacher.lm.config.vocab_size
    if ours != theirs:
        raise ValueError(
            f"teacher.path={cfg.teacher.path!r}: vocabulary of {theirs} ids, the student has "
            f"{ours}; distillation compares the same token ids, choose a teacher of the same family"
        )
    if tokenizer_digest(student.tokenizer) != tokenizer_digest(teacher.tokenizer):
        raise ValueError(
            f"teacher.path={cfg.teacher.path!r}: its tokenizer differs from the student's "
            f"({student.path}); use a teacher with the same tokenizer and special tokens"
        )
    return teacher


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
    module = config_lib.load_plugin("envs", cfg.env.name)
    if cfg.env.template not in module.TEMPLATES:
        raise ValueError(
            f"env.template={cfg.env.template!r}: {cfg.env.name} has {', '.join(module.TEMPLATES)}"
        )
    settings = config_lib.section(module.Config, cfg.env)
    renderer = Renderer(
        tokenizer,
        module.TEMPLATES[cfg.env.template],
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


def policy(cfg: ConfigDict, model: Model, mesh: Mesh, temperature: float, max_rows: int) -> Policy:
    """A sampler for `model` at the given temperature."""
    sampling = SamplingConfig(
        temperature=temperature,
        top_k=cfg.sampling.top_k,
        top_p=cfg.sampling.top_p,
        max_new_tokens=cfg.sampling.max_new_tokens,
        prompt_buckets=tuple(cfg.sampling.prompt_buckets),
        max_rows=max_rows,
        eos_ids=(model.tokenizer.eos_token_id,),
        pad_id=model.tokenizer.pad_token_id,
        vocab=len(model.tokenizer),
        forbidden=(model.tokenizer.pad_token_id,),
    )
    return Policy(model.lm, sampling, mesh)


def actor(policy: Policy, params: Any, key: jax.Array) -> Act:
    """A rollout's `act` for fixed parameters; the draws of turn k come from fold_in(key, k)."""
    return lambda prompts, slots, turn: policy.act(
        params, prompts, slots, jax.random.fold_in(key, turn)
    )


def mesh_shape(cfg: ConfigDict, devices: int) -> dict[str, int]:
    """The sizes of the mesh axes, an axis of -1 filled with the devices that are left.

    Raises:
      ValueError: several axes are -1.
    """
    shape = cfg.mesh.to_dict()
    open_axes = [axis for axis, size in shape.items() if size == -1]
    if len(open_axes) > 1:
        raise ValueError(f"mesh axes {open_axes} are all -1; only one can take what is left")
    for axis in open_axes:
        others = math.prod(size for name, size in shape.items() if name != axis)
        shape[axis] = max(1, devices // others)
    return shape


def mesh_of(cfg: ConfigDict) -> Mesh:
    """The device mesh of the config, checked against the batch sizes.

    Raises:
      ValueError: the axes do not fit the devices, or the batch does not fit the axes.
    """
    shape = mesh_shape(cfg, jax.device_count())
    mesh = make_mesh(shape)
    config_lib.validate_mesh(cfg, local_shards(mesh), shape)
    return mesh
