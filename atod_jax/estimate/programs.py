"""The package's large programs on arrays that need not exist, and the least work each has to do.

A program is a compiled function of the package with a recipe for its arguments: of their shapes
alone where it is compiled for devices that are not here, of random numbers where it runs.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from atod_jax.core.fused import HeadConfig, TeacherHead, token_stats
from atod_jax.core.losses import LossConfig
from atod_jax.device import learner
from atod_jax.device.optim import OptimConfig, make_learning_rate, make_optimizer
from atod_jax.device.sampling import SamplingConfig
generate = None
from atod_jax.device.scoring import make_score
ScoreConfig = None
from atod_jax.models import AXES, LanguageModel, ModelConfig
from atod_jax.models.loading import to_integers
from atod_jax.results.tables import padded_table
from atod_jax.sharding import Layout, batch_sharding, param_shardings
from atod_jax.types import Rows, Signal, TrainState

PAD, END = 0, 1
LOSS, OPTIM = LossConfig(), OptimConfig()


class Work(NamedTuple):
    """What no implementation can avoid: operations of products, bytes of memory."""

    flops: float
    bytes: float


class Program(NamedTuple):
    """A compiled function with the arguments it is called with."""

    name: str
    run: Any  # jitted
    make: Callable[[], tuple]  # its arguments; traced, so none of them need exist
    places: tuple  # shardings, a prefix of the arguments
    work: Work
    mesh: Mesh
    steps: int = 0  # of an open loop whose single step is what counts; 0: the whole program
    donated: bool = False  # the first argument is; the first result takes its place
    resident: bool = True  # the first argument is there for the whole run

    def shapes(self) -> tuple:
        """The arguments as shapes with their shardings."""
        return jax.tree.map(_placed, self.places, jax.eval_shape(self.make))

    def lower(self) -> Any:
        """The program before it is compiled, for the devices of its shardings."""
        return self.run.lower(*self.shapes())

    def arguments(self) -> tuple:
        """Random arguments on the devices of its shardings."""
        return jax.jit(self.make, out_shardings=self.places)()

    @property
    def given(self) -> int:
        """Bytes of a device that the program is given and that stay for the whole run."""
        return size(self.shapes()[0]) if self.resident else 0


def size(shapes: Any) -> int:
    """Bytes of some arrays on one device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(shapes)
    )


def placement(program: Program) -> str:
    """Where every array lies that the program is given."""
    rows = []
    for path, x in jax.tree_util.tree_leaves_with_path(program.shapes()):
        axes = ", ".join(str(axis or "-") for axis in x.sharding.spec)
        shape, local = (" x ".join(map(str, s)) for s in (x.shape, x.sharding.shard_shape(x.shape)))
        rows.append((jax.tree_util.keystr(path, simple=True, separator="/"), shape, axes, local))
    return padded_table(("argument", "shape", "mesh axes", "on a device"), rows)


class Shape(NamedTuple):
    """Rows of a batch: every one of them is full."""

    rows: int
    prompt: int
    response: int
    micro_rows: int = 0  # of one forward pass

    @property
    def columns(self) -> int:
        return self.prompt + self.response


def _key() -> jax.Array:
    return jax.random.key(0)


def _placed(place: Any, shapes: Any) -> Any:
    """Shapes with their shardings; one sharding may stand for a whole tree."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)


# ------------------------------------------------------------------- the programs


def update(
    model: LanguageModel,
    shape: Shape,
    layout: Layout,
    *,
    loss: LossConfig = LOSS,
    optim: OptimConfig = OPTIM,
) -> Program:
    """One optimiser step on `shape.rows` rows."""
    tx, mesh = make_optimizer(optim), layout.mesh
    step = learner.make_update(
        model,
        tx,
        learning_rate=make_learning_rate(optim, 1),
        loss=loss,
        score=_score_config(shape, mesh),
    )

    def make() -> tuple:
        per_token = jnp.ones((shape.rows, shape.response), jnp.float32)
        signal = Signal(advantage=per_token, old_logp=-per_token, diagnostics={})
        piece = learner.Piece(_rows(model.config, shape), signal, per_token / per_token.size)
        return learner.init_state(model, model.init(_key()), tx=tx), piece

    return Program(
        name="update",
        mesh=layout.mesh,
        run=jax.jit(step, donate_argnums=0),
        make=make,
        places=(_state_places(make, layout), batch_sharding(mesh)),
        work=_passes(model.config, shape, 3),
        donated=True,
    )


def score(model: LanguageModel, shape: Shape, layout: Layout, *, dtype: str = "float32") -> Program:
    """Log-probabilities and entropies of `shape.rows` rows; weights stored as `dtype`."""

    def make() -> tuple:
        return _stored(model, dtype), _rows(model.config, shape)

    return Program(
        name="score",
        mesh=layout.mesh,
        run=make_score(model, _score_config(shape, layout.mesh)),
        make=make,
        places=(_param_places(model, layout, dtype), batch_sharding(layout.mesh)),
        work=_passes(model.config, shape, 1),
    )


def play(model: LanguageModel, shape: Shape, layout: Layout) -> Program:
    """Prompts read and actions sampled, `shape.response` tokens each; one step is what counts.

    Weights are stored in the compute type.
    """
    cfg = SamplingConfig(
        max_new_tokens=shape.response,
        prompt_buckets=(shape.prompt,),
        max_rows=shape.rows,
        eos_ids=(END,),
        pad_id=PAD,
    )

    def run(params: Any, prompt: Any, length: Any, key: Any, row_id: Any) -> Any:
        return generate(
            model, params, prompt=prompt, prompt_length=length, key=key, row_id=row_id, cfg=cfg
        )

    def make() -> tuple:
        rows = _rows(model.config, shape)
        ids = jnp.arange(shape.rows)
        return _stored(model, model.config.dtype), rows.prompt, rows.prompt_length, _key(), ids

    rows, whole = batch_sharding(layout.mesh), NamedSharding(layout.mesh, PartitionSpec())
    seen = shape.prompt + shape.response / 2
    return Program(
        name="decode",
        mesh=layout.mesh,
        run=jax.jit(run),
        make=make,
        places=(_param_places(model, layout), rows, rows, whole, rows),
        work=_step(model.config, shape.rows, seen),
        steps=shape.response - 1,
        resident=False,  # a copy of the weights, for playing alone
    )


def prefill(model: LanguageModel, shape: Shape, layout: Layout) -> Program:
    """Prompts read and one token of each sampled."""
    once = play(model, shape._replace(response=1), layout)
    tokens, config = shape.rows * shape.prompt, model.config
    flops = 2 * tokens * weights(config) + shape.rows * attention(config, shape.prompt)
    return once._replace(name="prefill", steps=0, work=Work(flops, 0.0))


def head(
    tokens: int, dtype: str, layout: Layout, *, width: int, vocab: int, teacher: bool = False
) -> Program:
    """The vocabulary head forward and backward; with a teacher of the same width and its KL."""
    cfg, shape = HeadConfig(mesh=layout.mesh), (tokens // 512, 512)

    def loss(hidden: Any, matrix: Any, action: Any, their: TeacherHead | None) -> jax.Array:
        mask = jnp.ones(shape, bool)
        stats = token_stats(hidden, matrix, action=action, action_mask=mask, cfg=cfg, teacher=their)
        total = stats.entropy - stats.logp
        return jnp.mean(total if stats.reverse_kl is None else total + stats.reverse_kl)

    def make() -> tuple:
        states = jax.random.normal(_key(), (*shape, width), dtype)
        matrix = 0.02 * jax.random.normal(_key(), (vocab, width), dtype)
        action = jax.random.randint(_key(), shape, 0, vocab)
        return states, matrix, action, TeacherHead(states, matrix) if teacher else None

    rows: Any = batch_sharding(layout.mesh)
    whole: Any = NamedSharding(layout.mesh, PartitionSpec())
    products = 4 if teacher else 3
    return Program(
        name="head",
        mesh=layout.mesh,
        resident=False,
        run=jax.jit(jax.value_and_grad(loss, (0, 1))),
        make=make,
        places=(rows, whole, rows, TeacherHead(rows, whole) if teacher else None),
        work=Work(2.0 * products * tokens * vocab * width, 0.0),
    )


def _stored(model: LanguageModel, dtype: str) -> Any:
    """Random weights of a type; "int8": as a teacher of that type is kept."""
    if dtype == "int8":
        return to_integers(model.config, _stored(model, "bfloat16"))
    return jax.tree.map(lambda x: x.astype(dtype), model.init(_key()))


def _score_config(shape: Shape, mesh: Mesh) -> ScoreConfig:
    return ScoreConfig(shape.micro_rows or shape.rows, HeadConfig(mesh=mesh))


def _rows(config: ModelConfig, shape: Shape) -> Rows:
    n, p, r = shape.rows, shape.prompt, shape.response
    ids = jax.random.randint(_key(), (n, p + r), END + 1, config.vocab_size)
    per_row = jnp.arange(n, dtype=jnp.int32)
    return Rows(
        prompt=ids[:, :p],
        prompt_length=jnp.full(n, p, jnp.int32),
        action=ids[:, p:],
        action_mask=jnp.ones((n, r), bool),
        sampler_logp=-jnp.ones((n, r), jnp.float32),
        traj=per_row,
        turn=jnp.zeros(n, jnp.int32),
        action_valid=jnp.ones(n, bool),
        reward=jnp.zeros(n, jnp.float32),
        anchor=per_row,
    )


def _param_places(model: LanguageModel, layout: Layout, dtype: str = "float32") -> Any:
    params = jax.eval_shape(lambda: _stored(model, dtype))
    return model.join(
        *(
            part and param_shardings(part, AXES, layout.rules, mesh=layout.mesh)
            for part in model.split(params)
        )
    )


def _state_places(make: Callable[[], tuple], layout: Layout) -> TrainState:
    """Moments are dicts of the parameters' form and lie with them; counters are everywhere."""
    whole = NamedSharding(layout.mesh, PartitionSpec())
    state: TrainState = jax.eval_shape(make)[0]

    def places(part: Any) -> Any:
        if not isinstance(part, dict):
            return whole
        return param_shardings(part, AXES, layout.rules, mesh=layout.mesh)

    return jax.tree.map(places, state, is_leaf=lambda part: isinstance(part, dict))


# ------------------------------------------------------------------- the least work


def weights(config: ModelConfig) -> float:
    """Weights that a token is multiplied with in the layers."""
    heads = config.num_heads + config.num_kv_heads
    mlp = 3 * config.intermediate_size * (config.experts_per_token or 1)
    return config.num_layers * config.hidden_size * (2 * heads * config.head_dim + mlp)


def attention(config: ModelConfig, length: float) -> float:
    """Operations of the scores and values of a row, half of the pairs masked."""
    return 2 * config.num_layers * config.num_heads * config.head_dim * length**2


def _passes(config: ModelConfig, shape: Shape, passes: int) -> Work:
    """Forward, and twice that for the backward pass; nothing is computed again."""
    head = shape.response * config.vocab_size * config.hidden_size
    row = 2 * (shape.columns * weights(config) + head) + attention(config, shape.columns)
    return Work(passes * shape.rows * row, 0.0)


def _step(config: ModelConfig, rows: int, seen: float) -> Work:
    """One token per row: every weight and all keys and values are read once."""
    used = weights(config) + config.vocab_size * config.hidden_size
    item = jnp.dtype(config.dtype).itemsize
    cache = 2 * config.num_layers * config.num_kv_heads * config.head_dim * rows * seen
    pairs = 4 * config.num_layers * config.num_heads * config.head_dim * rows * seen
    return Work(2 * rows * used + pairs, item * (used + cache))
