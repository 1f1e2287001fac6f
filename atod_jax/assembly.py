"""Builds the parts of a run from its config; shared by train, evaluate and the notebooks."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerFast

from atod_jax import config as config_lib
from atod_jax.envs.pool import EnvPool
from atod_jax.models import LanguageModel, load_model
from atod_jax.render import Renderer, load_tokenizer
from atod_jax.rollout import Act
from atod_jax.sampling import Policy, SamplingConfig
from atod_jax.scoring import ScoreConfig
from atod_jax.sharding import batch_shards, make_mesh
from atod_jax.streams import Stream, key
from atod_jax.types import Task

ASSETS = Path(__file__).parent / "assets"


class Model(NamedTuple):
    """A language model with its weights and tokenizer."""

    path: Path
    lm: LanguageModel
    params: Any
    tokenizer: PreTrainedTokenizerFast


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


def model_path(name: str, key_name: str) -> Path:
    """A model folder by path, or a shipped one by name such as "household/student".

    Raises:
      FileNotFoundError: neither exists.
    """
    for candidate in (Path(name), ASSETS / name):
        if name and (candidate / "config.json").is_file():
            return candidate
    shipped = sorted(str(p.parent.relative_to(ASSETS)) for p in ASSETS.glob("*/*/config.json"))
    raise FileNotFoundError(
        f"{key_name}={name!r}: no folder with a config.json there; "
        f"shipped models: {', '.join(shipped)}"
    )


def load(name: str, key_name: str, *, remat: str, mesh: Mesh) -> Model:
    """Loads a Hugging Face folder, weights placed on the mesh."""
    path = model_path(name, key_name)
    tokenizer = load_tokenizer(str(path))
    lm, params = load_model(path, remat=remat, mesh=mesh)
    if len(tokenizer) > lm.config.vocab_size:
        raise ValueError(
            f"{key_name}={name!r}: the tokenizer has {len(tokenizer)} ids but the model's "
            f"vocab_size is {lm.config.vocab_size}; use the tokenizer the model was trained with"
        )
    return Model(path=path, lm=lm, params=params, tokenizer=tokenizer)


def load_student(cfg: ConfigDict, mesh: Mesh) -> Model:
    """The student, with fresh weights if the config asks for them."""
    student = load(cfg.student.path, "student.path", remat=cfg.student.remat, mesh=mesh)
    if cfg.student.random_init:
        fresh = jax.jit(
            student.lm.init, out_shardings=jax.tree.map(lambda x: x.sharding, student.params)
        )
        student = student._replace(params=fresh(key(cfg.seed, Stream.init)))
    return student


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


def environment(cfg: ConfigDict, tokenizer: PreTrainedTokenizerFast) -> Environment:
    """The environment side of a run."""
    module = config_lib.load_plugin("envs", cfg.env.name)
    if cfg.env.template not in module.TEMPLATES:
        raise ValueError(
            f"env.template={cfg.env.template!r}: {cfg.env.name} has {', '.join(module.TEMPLATES)}"
        )
    settings = config_lib.section(module.Config, cfg.env)
    renderer = Renderer(tokenizer, module.TEMPLATES[cfg.env.template], history=cfg.env.history)
    pool = EnvPool(lambda: module.make(settings))
    return Environment(module=module, settings=settings, pool=pool, renderer=renderer)


def score_config(cfg: ConfigDict, pad_id: int) -> ScoreConfig:
    """How student and teacher are scored: the rollout's temperature and support."""
    return ScoreConfig(
        temperature=cfg.sampling.temperature,
        micro_rows=cfg.packing.micro_rows,
        head_block=cfg.packing.head_block,
        forbidden=(pad_id,),
    )


def policy(cfg: ConfigDict, model: Model, mesh: Mesh, temperature: float, max_rows: int) -> Policy:
    """A sampler for `model` at the given temperature."""
    sampling = SamplingConfig(
        temperature=temperature,
        top_k=cfg.sampling.top_k,
        top_p=cfg.sampling.top_p,
        max_new_tokens=cfg.sampling.max_new_tokens,
        prompt_buckets=tuple(cfg.sampling.prompt_buckets),
        max_rows=max_rows,
        eos_id=model.tokenizer.eos_token_id,
        pad_id=model.tokenizer.pad_token_id,
        forbidden=(model.tokenizer.pad_token_id,),
    )
    return Policy(model.lm, sampling, mesh)


def actor(policy: Policy, params: Any, key: jax.Array) -> Act:
    """A rollout's `act` for fixed parameters; the draws of turn k come from fold_in(key, k)."""
    return lambda prompts, slots, turn: policy.act(
        params, prompts, slots, jax.random.fold_in(key, turn)
    )


def mesh_of(cfg: ConfigDict) -> Mesh:
    """The device mesh of the config, checked against the batch sizes."""
    mesh = make_mesh({"data": cfg.mesh.data, "fsdp": cfg.mesh.fsdp, "tensor": cfg.mesh.tensor})
    config_lib.validate_mesh(cfg, batch_shards(mesh), dict(mesh.shape))
    return mesh
