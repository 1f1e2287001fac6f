"""What XLA itself says of the memory of the three large programs, compiled for the devices here."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from atod_jax.core.fused import HeadConfig
from atod_jax.core.losses import LossConfig
from atod_jax.device import learner
from atod_jax.device.optim import OptimConfig, make_learning_rate, make_optimizer
from atod_jax.device.sampling import SamplingConfig, generate
from atod_jax.device.scoring import ScoreConfig, make_score
from atod_jax.estimate.plan import Placed, Plan
from atod_jax.models import AXES, LanguageModel, build, lora
from atod_jax.sharding import batch_sharding, make_mesh, param_shardings
from atod_jax.types import Rows, Signal, TrainState

_PAD, _END = 0, 1


class Measured(NamedTuple):
    """Bytes per device of one program."""

    arguments: int
    temporary: int  # on top of the arguments, results that reuse no argument included


def measure(plan: Plan) -> Mapping[str, Measured]:
    """Compiles sampling, scoring and update of the student for this machine; runs nothing.

    Raises:
      ValueError: the student's mesh is larger than the devices here.
    """
    mesh, model = _mesh(plan.student), _model(plan.student)
    params, rows = _params(plan.student, mesh), _rows(plan, mesh)
    cfg = ScoreConfig(plan.micro_rows, HeadConfig(mesh=mesh))
    sampling = _mesh(plan.sampling)
    with jax.set_mesh(sampling):
        programs = {"rollout": _sampling(plan, _params(plan.sampling, sampling), sampling)}
    with jax.set_mesh(mesh):
        programs["student scoring"] = make_score(model, cfg).lower(params, rows)
        programs["update"] = _update(plan, params, rows, cfg, mesh)
    return {name: _measured(program.compile()) for name, program in programs.items()}


def _mesh(placed: Placed) -> Mesh:
    """Over the first devices: others may be the teacher's."""
    return make_mesh(dict(placed.mesh), np.array(jax.devices()[: placed.devices]))


def _measured(program: Any) -> Measured:
    m = program.memory_analysis()
    temporary = m.temp_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
    return Measured(m.argument_size_in_bytes, temporary)


def _sampling(plan: Plan, params: Any, mesh: Mesh) -> Any:
    cfg = SamplingConfig(
        max_new_tokens=plan.response,
        prompt_buckets=(plan.prompt,),
        max_rows=plan.episodes,
        eos_ids=(_END,),
        pad_id=_PAD,
    )
    prompt = _array(mesh, (plan.episodes, plan.prompt), jnp.int32)
    per_row = _array(mesh, (plan.episodes,), jnp.int32)
    key = jax.random.key(0)
    return generate.lower(
        _model(plan.sampling),
        params,
        prompt=prompt,
        prompt_length=per_row,
        key=key,
        row_id=per_row,
        cfg=cfg,
    )


def _update(plan: Plan, params: Any, rows: Rows, cfg: ScoreConfig, mesh: Mesh) -> Any:
    optim = OptimConfig()
    tx = make_optimizer(optim)
    model = _model(plan.student)
    trained, frozen = model.split(params)
    state = jax.eval_shape(lambda p: learner.init_state(model, p, tx=tx), params)
    places = jax.tree.map(lambda p: p.sharding, trained)
    state = state.replace(params=trained, frozen=None)
    whole = NamedSharding(mesh, PartitionSpec())
    # the moments are dicts of the same form as the parameters, everything else is a scalar
    state = jax.tree.map(
        lambda part: jax.tree.map(_placed, part, places if isinstance(part, dict) else whole),
        state,
        is_leaf=lambda part: isinstance(part, dict),
    )
    per_token = _array(mesh, (plan.minibatch_rows, plan.response), jnp.float32)
    signal = Signal(advantage=per_token, old_logp=per_token, diagnostics={})
    update = learner.make_update(
        model, tx, learning_rate=make_learning_rate(optim, 1), loss=LossConfig(), score=cfg
    )
    piece = learner.Piece(rows, signal, per_token)

    def step(state: TrainState, frozen: Any, piece: learner.Piece) -> Any:
        new, metrics = update(state.replace(frozen=frozen), piece)
        return new.replace(frozen=None), metrics

    return jax.jit(step, donate_argnums=0).lower(state, frozen, piece)


def _model(placed: Placed) -> LanguageModel:
    lm, rank = build(placed.model), placed.adapters
    return lora.adapted(lm, rank=rank, alpha=float(rank)) if rank else lm


def _params(placed: Placed, mesh: Mesh) -> Any:
    abstract = jax.eval_shape(_model(placed).init, jax.random.key(0))

    def on_mesh(part: Any) -> Any:
        places = param_shardings(part, AXES, dict(placed.rules), mesh=mesh)
        return jax.tree.map(_placed, part, places)

    model = _model(placed)
    return model.join(*(part and on_mesh(part) for part in model.split(abstract)))


def _placed(x: Any, place: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)


def _array(mesh: Mesh, shape: tuple[int, ...], dtype: Any) -> Any:
    """What stands for an array where nothing is computed."""
    return jax.ShapeDtypeStruct(shape, np.dtype(dtype), sharding=batch_sharding(mesh))


def _rows(plan: Plan, mesh: Mesh) -> Rows:
    n, p, r = plan.minibatch_rows, plan.prompt, plan.response
    per_row = _array(mesh, (n,), jnp.int32)
    return Rows(
        prompt=_array(mesh, (n, p), jnp.int32),
        prompt_length=per_row,
        action=_array(mesh, (n, r), jnp.int32),
        action_mask=_array(mesh, (n, r), bool),
        sampler_logp=_array(mesh, (n, r), jnp.float32),
        traj=per_row,
        turn=per_row,
        action_valid=_array(mesh, (n,), bool),
        reward=_array(mesh, (n,), jnp.float32),
        anchor=per_row,
    )
