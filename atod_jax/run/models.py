"""The models of a run: from folders and checkpoints to their meshes, with their tokenizers."""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from transformers import PreTrainedTokenizerFast

from atod_jax.config.reading import to_plain
from atod_jax.config.sections import Fresh, Run, Student, Teacher
from atod_jax.device.learner import init_state
from atod_jax.device.optim import OptimConfig, make_optimizer
from atod_jax.episodes.chat import ensure_template, warn_other_chat
from atod_jax.episodes.render import load_tokenizer
from atod_jax.episodes.tokens import Tokens, require_same_ids
from atod_jax.models import AXES, LanguageModel, ModelConfig, build, config_from_hf, hub, lora
from atod_jax.models.checkpoint_io import Source, read_config, read_source
from atod_jax.models.loading import load_sharded
from atod_jax.models.transformer import resize_vocabulary
from atod_jax.models.written import require_unchanged
from atod_jax.results.checkpoint import Checkpointer
from atod_jax.run.layouts import Layouts
from atod_jax.sharding import Layout, param_shardings, reshard
from atod_jax.streams import Stream, key
from atod_jax.types import TrainState

ASSETS = Path(__file__).parents[1] / "assets"
FRESH = {"model_type": "qwen3", "rope_theta": 1e4, "rms_norm_eps": 1e-6}  # of new small models


class Model(NamedTuple):
    """A language model with its weights, where they live, and its tokenizer."""

    path: Path
    lm: LanguageModel
    params: Any  # of a teacher as `lm.serve` makes them
    tokens: Tokens  # its tokenizer, and what the ids are for
    layout: Layout  # of the weights, for scoring and training
    sampling: Layout  # of the copy that samples, see `to_sampling`
    source: Source | None = None  # of the folder its weights came from

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Between its text and its ids."""
        return self.tokens.tokenizer


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
    sampling: Layout | None = None,
    compute: str = "float32",
    storage: str = "float32",
    frozen: bool = False,
) -> Model:
    """Loads a Hugging Face folder, every device its own part of the weights.

    Args:
      name: see `model_path`.
      key_name: the option that named it, for messages.
      remat: see `ModelConfig`.
      layout: where its weights go.
      sampling: where it samples; None: there.
      compute: type of the matrix products.
      storage: type the weights are kept in, see `load_sharded`.
      frozen: they are read and never trained, so they are kept as `LanguageModel.serve` makes them.
    """
    path = model_path(name, key_name, "config.json")
    config = dataclasses.replace(read_config(path, dtype=compute), remat=remat)
    tokens = _tokens(path, config, key_name)
    with jax.set_mesh(layout.mesh):
        put = functools.partial(_shardings, layout)
        params = load_sharded(path, config, put, dtype=storage, apart=frozen)
    require_unchanged(path, key_name)
    lm, source = build(config), read_source(path)
    if frozen:
        params = _served(lm, params, layout)
    return Model(path, lm, params, tokens, layout, sampling or layout, source)


def _served(lm: LanguageModel, params: Any, layout: Layout) -> Any:
    """`lm.serve` of weights whose layers are apart and in the compute type, layer by layer: beside
    them no more than a layer is in memory. The given ones are gone then."""
    blocks, joined = list(params.pop("blocks")), _serve(lm)
    with jax.set_mesh(layout.mesh):
        for i in range(len(blocks)):
            (blocks[i],) = joined({"blocks": (blocks[i],)})["blocks"]
    return params | {"blocks": tuple(blocks)}


def load_student(cfg: Student, layouts: Layouts, *, seed: int) -> Model:
    """The student: the folder's weights, or a new model of the sizes in `student.fresh`.

    Args:
      cfg: which one.
      layouts: where it trains and samples.
      seed: of the weights that are drawn, a new model's or adapters'.
    """
    model = _student(cfg, layouts, seed)
    ensure_template(model.tokenizer, f"student.path={cfg.path!r}")
    return model


def _student(cfg: Student, layouts: Layouts, seed: int) -> Model:
    if not cfg.fresh.hidden_size:
        student = load(
            cfg.path,
            "student.path",
            remat=cfg.remat,
            compute=cfg.dtype,
            layout=layouts.student,
            sampling=layouts.sampling,
        )
        return _with_adapters(cfg, student, seed) if cfg.lora_rank else student
    path, config = fresh_config(cfg)
    tokens = _tokens(path, config, "student.path")
    weights = build(config).init(key(seed, Stream.init))
    params = jax.device_put(weights, _shardings(layouts.student, weights))
    return Model(path, build(config), params, tokens, layouts.student, layouts.sampling)


def _with_adapters(cfg: Student, student: Model, seed: int) -> Model:
    """The same student, of which only student.lora_* trains."""
    rank, drawn = cfg.lora_rank, key(seed, Stream.adapters)
    adapters = lora.init_adapters(student.params, drawn, rank=rank)
    adapters = jax.device_put(adapters, _shardings(student.layout, adapters))
    lm = lora.adapted(student.lm, rank=rank, alpha=cfg.lora_alpha)
    return student._replace(lm=lm, params=lm.join(adapters, student.params))


def fresh_config(cfg: Student) -> tuple[Path, ModelConfig]:
    """The folder of the tokenizer, and a new student of the sizes in `student.fresh` for it."""
    path = model_path(cfg.path, "student.path", "tokenizer.json")
    sizes = {"vocab_size": load_tokens(path).count, "tie_word_embeddings": True}
    fields = FRESH | sizes | dataclasses.asdict(cfg.fresh)
    config = config_from_hf(fields, dtype=cfg.dtype, file="student.fresh")
    return path, dataclasses.replace(config, remat=cfg.remat)


def _shardings(layout: Layout, params: Any) -> Any:
    return param_shardings(params, AXES, layout.rules, mesh=layout.mesh)


def to_sampling(model: Model, params: Any) -> Any:
    """The weights with which the model plays, in the layout in which it samples; those of a teacher
    are that already."""
    if "blocks" in params:
        return params
    if model.sampling != model.layout:
        trained, frozen = (p and _shardings(model.sampling, p) for p in model.lm.split(params))
        params = reshard(params, model.lm.join(trained, frozen))
    with jax.set_mesh(model.sampling.mesh):
        return _serve(model.lm)(params)


@functools.cache
def _serve(lm: LanguageModel) -> Callable[[Any], Any]:
    return jax.jit(lm.serve)


def load_tokens(path: Path) -> Tokens:
    """The tokenizer of a model folder, and what its ids are for.

    Raises:
      FileNotFoundError: there is none.
      ValueError: nothing says which token ends an answer.
    """
    return Tokens.of(load_tokenizer(str(path)), path)


def _tokens(path: Path, config: ModelConfig, key_name: str) -> Tokens:
    tokens = load_tokens(path)
    if tokens.count > config.vocab_size:
        raise ValueError(
            f"{key_name}={str(path)!r}: the tokenizer has ids up to {tokens.count - 1} but the "
            f"model's vocab_size is {config.vocab_size}; use the tokenizer the model was trained "
            "with"
        )
    return tokens


def load_teacher(cfg: Teacher, student: Model, layouts: Layouts) -> Model | None:
    """The frozen teacher, or None when no path is given.

    Raises:
      ValueError: its tokenizer is not the student's.
    """
    if not cfg.path:
        return None
    # before any weights are read: a large teacher takes minutes
    path = model_path(cfg.path, "teacher.path", "config.json")
    tokens, name = load_tokens(path), f"teacher.path={cfg.path!r}"
    require_same_ids(student.tokens, tokens, name)
    warn_other_chat(student.tokenizer, tokens.tokenizer, name)
    layout = layouts.teacher
    teacher = load(
        cfg.path,
        "teacher.path",
        remat="none",
        compute="bfloat16" if cfg.dtype == "int8" else cfg.dtype,
        storage=cfg.dtype,
        layout=layout,
        frozen=True,
    )
    rows, theirs = student.lm.config.vocab_size, teacher.lm.config.vocab_size
    if rows == theirs:
        return teacher
    print(
        f"{name}: its head has {theirs} rows, the student's {rows}, for "
        f"{student.tokens.count} ids; rows without an id are dropped or added, they never count"
    )
    config = dataclasses.replace(teacher.lm.config, vocab_size=rows)
    places = functools.partial(_shardings, layout)
    with jax.set_mesh(layout.mesh):
        params = resize_vocabulary(teacher.params, rows, places)
    return teacher._replace(lm=build(config), params=params)


class Saved(NamedTuple):
    """The checkpoints of a run."""

    workdir: Path
    step: int | None  # None: the latest


def load_policy(cfg: Run, checkpoint: str, layouts: Layouts) -> Model:
    """The student of a config with the weights that --checkpoint names.

    Args:
      cfg: of the run, or of another one whose student has the same form.
      checkpoint: a run of `train` (its latest step), one step of it, or a Hugging Face folder,
        which takes the place of student.path; "" leaves that as it is.
      layouts: of the config.
    """
    saved = saved_run(checkpoint) if checkpoint else None
    student = cfg.student
    if checkpoint and saved is None:
        student = dataclasses.replace(student, path=checkpoint, fresh=Fresh(), lora_rank=0)
    model = load_student(student, layouts, seed=cfg.seed)
    if saved is None:
        return model
    return model._replace(params=restore_params(cfg, saved, model))


def restore_params(cfg: Run, saved: Saved, student: Model) -> Any:
    """Student parameters of a training run's latest (or a given) step.

    Raises:
      FileNotFoundError: nothing is saved there.
      ValueError: it is damaged, or of another model.
    """
    checkpointer = Checkpointer(saved.workdir / "checkpoints", config=to_plain(cfg), read_only=True)
    step = checkpointer.latest_step() if saved.step is None else saved.step
    if step is None:
        raise FileNotFoundError(f"--checkpoint={saved.workdir}: no saved step there")
    if cfg.student.lora_rank:
        require_same_base(cfg.student, checkpointer.saved_config(step), saved.workdir)
    fresh = fresh_state(cfg.optim, student)
    if saved.step is None:
        state = checkpointer.restore_latest(fresh)
        assert state is not None  # there is a step; weights that nobody trained are no substitute
    else:
        state = checkpointer.restore(step, fresh)
    return student.lm.join(state.params, state.frozen)


def fresh_state(cfg: OptimConfig, student: Model) -> TrainState:
    """The state in which training begins; the loaded weights stay as they are."""
    return init_state(student.lm, student.params, tx=make_optimizer(cfg))


def require_same_base(cfg: Student, saved: Mapping[str, Any], workdir: Path) -> None:
    """Adapters are only worth something beside the weights they were trained with.

    Raises:
      ValueError: `saved`, the options of the run, has other ones or another scale.
    """
    for name in ("path", "lora_rank", "lora_alpha"):
        ours, theirs = getattr(cfg, name), saved.get("student", {}).get(name)
        if ours != theirs:
            raise ValueError(
                f"student.{name}={ours!r}, but the adapters in {workdir} were trained with "
                f"{theirs!r}; set --config.student.{name} to that"
            )


def saved_run(checkpoint: str) -> Saved | None:
    """The run that --checkpoint names: a workdir, its `checkpoints`, or a step folder in it.

    Returns:
      None where it names the folder of a model instead.

    Raises:
      FileNotFoundError: it names neither, with the nearest folder there is.
    """
    path = Path(checkpoint)
    if path.name.isdigit() and path.parent.name == "checkpoints" and path.is_dir():
        return Saved(path.parent.parent, int(path.name))
    if path.name == "checkpoints" and path.is_dir():
        return Saved(path.parent, None)
    if (path / "checkpoints").is_dir():
        return Saved(path, None)
    if local_path(checkpoint, "config.json"):
        return None
    if path.exists():
        raise FileNotFoundError(
            f"--checkpoint={checkpoint}: there are no checkpoints of a run and no config.json of a "
            "model in it"
        )
    beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, n=1)
    hint = f"; did you mean {path.parent / near[0]}?" if near else ""
    raise FileNotFoundError(f"--checkpoint={checkpoint}: no such folder{hint}")
