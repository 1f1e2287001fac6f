"""Every knob of a run, once: defaults, validation and the road from ConfigDict to typed sections.

ConfigDict stops here: `section(cls, cfg.x)` turns a part of it into the frozen dataclass that the
code below uses. A `configs/*.py` file is `base()` plus a few overrides.
"""

import dataclasses
import difflib
import importlib
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from ml_collections import ConfigDict

from atod_jax.core.fused import BACKENDS, Tiling
from atod_jax.core.losses import LossConfig
from atod_jax.device.optim import OptimConfig
from atod_jax.envs.pool import PoolConfig
from atod_jax.sharding import MESH_AXES, RULES

T = TypeVar("T")


def base() -> ConfigDict:
    """All options with their defaults: those of the released ATOD runs where they have one."""
    c = ConfigDict()
    c.seed = 0
    c.total_steps = 150  # iterations: one rollout and one pass of updates each

    c.student = ConfigDict()
    c.student.path = ""  # Hugging Face folder or name; household/<name> for a shipped one
    c.student.fresh = ConfigDict()  # sizes of a new Qwen3 model with the tokenizer of that folder
    c.student.fresh.hidden_size = 0  # 0 = load the folder's weights instead
    c.student.fresh.num_hidden_layers = 2
    c.student.fresh.num_attention_heads = 4
    c.student.fresh.num_key_value_heads = 2
    c.student.fresh.head_dim = 16
    c.student.fresh.intermediate_size = 192
    c.student.dtype = "float32"  # of its matrix products: float32 | bfloat16; weights stay float32
    c.student.remat = "full"  # what the backward pass recomputes: none | dots | full
    c.student.lora_rank = 0  # > 0: train only adapters of this rank beside its frozen matrices
    c.student.lora_alpha = 32.0  # they count alpha / rank
    c.student.rules = rules()
    c.teacher = ConfigDict()
    c.teacher.path = ""  # Hugging Face folder; unused by algorithms without a teacher
    c.teacher.dtype = "float32"  # of its weights: float32 | bfloat16 | int8 (products in bfloat16)
    c.teacher.devices = 0  # that it has for itself, the last of every process; 0 = shares all
    c.teacher.mesh = mesh(data=0, others=0)  # of the devices it is on; all 0 = like `mesh`
    c.teacher.rules = rules()

    _add_environment(c)
    c.rollout = ConfigDict()
    c.rollout.source = "student"  # who plays: student | expert (supervised turns) | recorded
    c.rollout.episodes = ""  # with source = recorded: the workdir of a run with record = True
    c.rollout.tasks = 16  # per iteration
    c.rollout.group = 8  # rollouts per task

    c.sampling = ConfigDict()
    c.sampling.temperature = 1.0
    c.sampling.top_k = 0  # 0 = off
    c.sampling.top_p = 1.0  # 1 = off
    c.sampling.max_new_tokens = 512
    c.sampling.rows = 0  # prompts sampled at a time; 0 = all; fewer need less memory
    c.sampling.mesh = mesh(
        data=0, others=0
    )  # of the student's devices while it plays; all 0 = `mesh`
    c.sampling.prompt_buckets = (512, 1024, 2048)  # compiled prompt lengths; the last is the limit

    c.demos = ConfigDict()  # only with rollout.source = expert
    c.demos.noise = (0.0, 0.0)  # per-trajectory chance of a random command, uniform in this range
    c.demos.label = "expert"  # what the turn teaches: expert | executed
    c.demos.absent = 0.3  # share of random commands that name a receptacle which may be absent
    c.demos.thoughts = False  # a short thought before the command

    c.algorithm = ConfigDict()
    c.algorithm.name = "atod"  # a module of atod_jax/algorithms
    for name in plugin_names("algorithms"):
        c.algorithm[name] = defaults(load_plugin("algorithms", name).Config)

    c.loss = defaults(LossConfig)
    c.packing = ConfigDict()
    c.packing.minibatch_rows = 256  # rows per optimiser step
    c.packing.micro_rows = 32  # rows per forward/backward pass
    c.packing.anchor_similarity = (
        1.0  # observations this alike are one (gigpo); released search 0.9
    )
    c.head = defaults(Tiling)  # how the vocabulary head is computed; never changes the numbers

    c.optim = defaults(OptimConfig)

    c.mesh = mesh(data=-1, others=1)  # devices per axis; -1 (one axis) = all that are left

    _add_bookkeeping(c)
    return c


def _add_environment(c: ConfigDict) -> None:
    """What is played, and how it is shown."""
    c.env = ConfigDict()
    c.env.name = "alfworld"  # a module of atod_jax/envs
    c.env.games = ""  # alfworld: a games.jsonl[.xz|.gz] or an official folder; "" = generated games
    c.env.engine = "native"  # alfworld: native | textworld (official folders only, slow)
    c.env.data = ""  # webshop: the official files; searchqa: questions and corpus; "" = generated
    c.env.human_goals = False  # webshop: requests of people (items_human_ins*), not made-up ones
    c.env.retriever = ""  # searchqa: URL of a search server; "" = BM25 in every process
    c.env.topk = 3  # searchqa: passages shown per search
    c.env.information = "json"  # searchqa: form of the results shown: json | plain
    c.env.seed = 0  # of what is generated
    c.env.win_reward = 10.0
    c.env.train_split = "train"
    c.env.template = "paper"  # how an episode is shown: paper | compact
    c.env.history = 2  # past (observation, command) pairs in the prompt
    c.env.max_turns = 50
    c.env.update(defaults(PoolConfig))  # workers, timeout, attempts


def _add_bookkeeping(c: ConfigDict) -> None:
    """Evaluations, checkpoints and what a run leaves behind."""
    c.eval = ConfigDict()
    c.eval.split = "valid_unseen"
    c.eval.tasks = 128  # while training; 0 = the whole split
    c.eval.final_tasks = 0  # at the start, at the end and for the teacher; 0 = the whole split
    c.eval.passes = 1  # sampling seeds per task, likewise; more give pass@k and narrower intervals
    c.eval.temperatures = (0.4,)  # of the start, end and teacher evaluations
    c.eval.curve_temperature = 0.4  # of the evaluations while training
    c.eval.slots = 128  # episodes played side by side
    c.eval.every = 5  # iterations; 0 = never

    c.save_every = 25  # iterations
    c.keep_checkpoints = 2
    c.log_transcripts = 4  # episodes written per evaluation
    c.record = False  # write every training episode to <workdir>/episodes
    c.export = ""  # write the final student to this Hugging Face folder as well


def mesh(*, data: int, others: int) -> ConfigDict:
    """Devices per mesh axis; `expert` is for mixtures of experts only."""
    return ConfigDict({axis: data if axis == "data" else others for axis in MESH_AXES})


def rules() -> ConfigDict:
    """The mesh axis that splits each logical axis of the parameters; "" = none does."""
    return ConfigDict({axis: mesh_axis or "" for axis, mesh_axis in RULES.items()})


def defaults(cls: type) -> ConfigDict:
    """A ConfigDict with the default of every field of a dataclass."""
    return ConfigDict({f.name: f.default for f in dataclasses.fields(cls)})


def section(cls: type[T], cfg: ConfigDict, **given: Any) -> T:
    """The typed form of a config section; `given` fills fields that are not options."""
    return cls(**{f.name: given.get(f.name, cfg.get(f.name)) for f in dataclasses.fields(cls)})


def parse_arg(arg: str | None, **options: Any) -> ConfigDict:
    """Reads `configs/file.py:key=value,flag` into a ConfigDict of `options`.

    Raises:
      ValueError: an unknown key, with the nearest known one.
    """
    result = ConfigDict(options)
    for item in filter(None, (arg or "").split(",")):
        key, _, value = item.partition("=")
        if key not in options:
            raise ValueError(
                f"config variant {key!r} is unknown{_nearest(key, options)}; "
                f"choose from {', '.join(sorted(options))}"
            )
        default = options[key]
        result[key] = True if isinstance(default, bool) and not value else type(default)(value)
    return result


def plugin_names(kind: str) -> list[str]:
    """The modules of atod_jax/<kind> that can be named in a config."""
    package = importlib.import_module(f"atod_jax.{kind}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name not in _INTERNAL)


_INTERNAL = {"base", "pool", "prepared", "processes", "tagged", "vocabulary", "worker"}


def load_plugin(kind: str, name: str) -> ModuleType:
    """Imports atod_jax/<kind>/<name>; the file name is the plug-in's name.

    Raises:
      ValueError: no such module, with the names there are.
    """
    names = plugin_names(kind)
    if name not in names:
        raise ValueError(
            f"unknown {kind} {name!r}{_nearest(name, names)}; there are {', '.join(names)}"
        )
    return importlib.import_module(f"atod_jax.{kind}.{name}")


def environment(cfg: ConfigDict) -> tuple[ModuleType, Any, Any]:
    """(module, settings, prompt template) of the environment that a config names.

    Raises:
      ValueError: no such environment, it has no such template, or it refuses its settings.
    """
    module = load_plugin("envs", cfg.env.name)
    if cfg.env.template not in module.TEMPLATES:
        raise ValueError(
            f"env.template={cfg.env.template!r}: {cfg.env.name} has {', '.join(module.TEMPLATES)}"
        )
    return module, section(module.Config, cfg.env), module.TEMPLATES[cfg.env.template]


def _nearest(word: str, known: Any) -> str:
    match = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""


def validate(cfg: ConfigDict, *, model_required: bool = True) -> None:
    """Checks what can be checked without loading anything.

    Raises:
      ValueError: one message that lists every problem as key, value and fix.
    """
    problems = [*_ranges(cfg), *_choices(cfg), *_shapes(cfg)]
    if model_required and not cfg.student.path:
        problems.append("student.path='': name a Hugging Face folder or household/<name>")
    problems += [] if problems else _sections(cfg)
    if problems:
        raise ValueError("invalid config:\n" + "\n".join(f"  {p}" for p in problems))


def _ranges(cfg: ConfigDict) -> list[str]:
    positive = {
        "total_steps": cfg.total_steps,
        "rollout.tasks": cfg.rollout.tasks,
        "rollout.group": cfg.rollout.group,
        "env.max_turns": cfg.env.max_turns,
        "sampling.max_new_tokens": cfg.sampling.max_new_tokens,
        "packing.minibatch_rows": cfg.packing.minibatch_rows,
        "packing.micro_rows": cfg.packing.micro_rows,
        "eval.slots": cfg.eval.slots,
        "eval.passes": cfg.eval.passes,
        "save_every": cfg.save_every,
        "keep_checkpoints": cfg.keep_checkpoints,
    }
    problems = [f"{k}={v}: must be at least 1" for k, v in positive.items() if v < 1]
    if cfg.student.lora_rank < 0:
        problems.append(f"student.lora_rank={cfg.student.lora_rank}: give a rank, or 0 for none")
    if cfg.student.lora_alpha <= 0:
        problems.append(f"student.lora_alpha={cfg.student.lora_alpha}: must be > 0")
    if cfg.student.lora_rank and cfg.student.fresh.hidden_size:
        problems.append(
            f"student.lora_rank={cfg.student.lora_rank} with student.fresh: a new model has "
            "nothing to keep; set student.lora_rank=0 or student.fresh.hidden_size=0"
        )
    if cfg.teacher.devices < 0 or (cfg.teacher.devices and not cfg.teacher.path):
        problems.append(
            f"teacher.devices={cfg.teacher.devices}: give a number of devices together with "
            "teacher.path, or 0 to share the student's"
        )
    if cfg.sampling.rows < 0:
        problems.append(f"sampling.rows={cfg.sampling.rows}: give a number of rows, or 0 for all")
    if not 0 < cfg.sampling.top_p <= 1:
        problems.append(f"sampling.top_p={cfg.sampling.top_p}: must be in (0, 1]; 1 turns it off")
    if cfg.sampling.temperature <= 0:
        problems.append(
            f"sampling.temperature={cfg.sampling.temperature}: training samples, so it must be > 0"
        )
    return problems


def _choices(cfg: ConfigDict) -> list[str]:
    allowed = {
        "rollout.source": (cfg.rollout.source, ("student", "expert", "recorded")),
        "demos.label": (cfg.demos.label, ("expert", "executed")),
        "student.dtype": (cfg.student.dtype, ("float32", "bfloat16")),
        "teacher.dtype": (cfg.teacher.dtype, ("float32", "bfloat16", "int8")),
        "student.remat": (cfg.student.remat, ("none", "dots", "full")),
        "optim.schedule": (cfg.optim.schedule, ("constant", "cosine")),
        "head.backend": (cfg.head.backend, BACKENDS),
        "env.engine": (cfg.env.engine, ("native", "textworld")),
        "env.name": (cfg.env.name, tuple(plugin_names("envs"))),
        "algorithm.name": (cfg.algorithm.name, tuple(plugin_names("algorithms"))),
    }
    for model in ("student", "teacher"):
        for axis, mesh_axis in cfg[model].rules.items():
            allowed[f"{model}.rules.{axis}"] = (mesh_axis, ("", *MESH_AXES))
    problems = [
        f"{key}={value!r}: choose from {', '.join(c or repr(c) for c in choices)}"
        for key, (value, choices) in allowed.items()
        if value not in choices
    ]
    if (cfg.rollout.source, cfg.algorithm.name == "sft") in (("expert", False), ("student", True)):
        problems.append(
            f"rollout.source={cfg.rollout.source!r} with algorithm.name={cfg.algorithm.name!r}: "
            "expert turns are for sft and sft needs them; change one of the two"
        )
    if cfg.rollout.source == "recorded" and not _is_folder(cfg.rollout.episodes):
        problems.append(
            f"rollout.episodes={cfg.rollout.episodes!r}: no such folder; name the workdir of a run "
            "with --config.record=true"
        )
    return problems


def _is_folder(name: str) -> bool:
    return bool(name) and Path(name).is_dir()


def _sections(cfg: ConfigDict) -> list[str]:
    """What the dataclasses behind the sections refuse."""
    name, problems = cfg.algorithm.name, []
    for key, cls, part in (
        ("loss", LossConfig, cfg.loss),
        ("head", Tiling, cfg.head),
        ("env", PoolConfig, cfg.env),
        (f"algorithm.{name}", load_plugin("algorithms", name).Config, cfg.algorithm[name]),
    ):
        try:
            section(cls, part)
        except ValueError as error:
            problems.append(f"{key}.{error}")
    if part.get("statistics") == "trajectories" and part.invalid_penalty:
        # The reference computes it; a run would drown in the groups whose returns are equal.
        problems.append(
            f"algorithm.{name}.invalid_penalty={part.invalid_penalty} with "
            "statistics='trajectories': a group with equal returns would divide the penalty by "
            "eps; set invalid_penalty=0 or statistics='turns'"
        )
    return problems


def _shapes(cfg: ConfigDict) -> list[str]:
    problems = []
    if cfg.packing.minibatch_rows % cfg.packing.micro_rows:
        problems.append(
            f"packing.minibatch_rows={cfg.packing.minibatch_rows}: must be a multiple of "
            f"packing.micro_rows={cfg.packing.micro_rows}"
        )
    buckets = tuple(cfg.sampling.prompt_buckets)
    if not buckets or list(buckets) != sorted(buckets):
        problems.append(f"sampling.prompt_buckets={buckets}: give increasing lengths")
    return problems
