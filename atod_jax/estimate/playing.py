"""The programs of playing: prompts are read, actions written."""

import jax
import jax.numpy as jnp

from atod_jax.device import slots
from atod_jax.device.sampling import SamplingConfig
from atod_jax.estimate import work
from atod_jax.estimate.programs import Program, random_key, serving_places, stored, whole
from atod_jax.estimate.work import Work
from atod_jax.models import LanguageModel, Prompts
from atod_jax.sharding import Layout, batch_sharding


def prefill(
    model: LanguageModel, layout: Layout, *, lines: int, columns: int, prompts: int = 1
) -> Program:
    """Lines of prompts read, each full."""

    def make() -> tuple:
        tokens = jax.random.randint(random_key(), (lines, columns), 2, model.config.vocab_size)
        lengths = jnp.full((lines, prompts), columns // prompts, jnp.int32)
        return model.serve(stored(model)), tokens, lengths

    rows = batch_sharding(layout.mesh)
    return Program(
        name="prefill",
        run=slots.programs(model, _sampling(1).program, layout.mesh).prefill,
        make=make,
        places=(serving_places(model, layout), rows, rows),
        mesh=layout.mesh,
        work=work.read(model.config, [columns // prompts] * (lines * prompts)),
    )


def fill(
    model: LanguageModel,
    layout: Layout,
    cfg: SamplingConfig,
    *,
    read: tuple[int, int, int],
    rows: int,
    columns: int,
    entries: int,
) -> Program:
    """Prompts that have been read enter as many slots as there are entries.

    Args:
      model, layout, cfg: of the sampler.
      read: lines, their columns and prompts.
      rows, columns: of the slots.
      entries: of the table.
    """
    lines, width, prompts = read

    def make() -> tuple:
        state = slots.empty(model, rows, columns, cfg=cfg)
        shape = (lines, width, model.config.num_kv_heads, model.config.head_dim)
        layers = (jnp.zeros(shape, model.config.dtype),) * model.config.num_layers
        hidden = jnp.zeros((lines, prompts, model.config.hidden_size), model.config.dtype)
        table = jnp.zeros((entries, len(slots.Entry._fields)), jnp.int32)
        return state, Prompts(layers, layers), hidden, table, jnp.zeros(2, jnp.uint32)

    shapes = jax.eval_shape(make)
    places = slots.shardings(layout.mesh, model.config.num_kv_heads, shapes[:-1])
    return Program(
        name="fill",
        run=slots.programs(model, cfg.program, layout.mesh).fill,
        make=make,
        places=(*places, whole(layout)),
        mesh=layout.mesh,
        work=Work(0.0),
        replaced=0,
    )


def decode(
    model: LanguageModel,
    layout: Layout,
    cfg: SamplingConfig,
    *,
    rows: int,
    columns: int,
    seen: float,
) -> Program:
    """A chunk of tokens in every slot of `columns` columns, of which `seen` hold something."""

    def make() -> tuple:
        state = slots.empty(model, rows, columns, cfg=cfg)
        length = jnp.full(rows, min(int(seen), columns - cfg.chunk), jnp.int32)
        cache = state.cache.replace(length=length)
        state = state.replace(cache=cache, live=jnp.ones(rows, bool), drawn=jnp.ones_like(length))
        return model.serve(stored(model)), state, jnp.float32(cfg.temperature)

    state = jax.eval_shape(lambda: slots.empty(model, rows, columns, cfg=cfg))
    return Program(
        name="decode",
        run=slots.programs(model, cfg.program, layout.mesh).decode,
        make=make,
        places=(
            serving_places(model, layout),
            slots.shardings(layout.mesh, model.config.num_kv_heads, state),
            whole(layout),
        ),
        mesh=layout.mesh,
        work=work.step(model.config, rows, seen),
        steps=cfg.chunk,
        replaced=1,
    )


def _sampling(tokens: int) -> SamplingConfig:
    return SamplingConfig(
        max_new_tokens=tokens, prompt_buckets=(1,), slots=1, eos_ids=(1,), pad_id=0
    )
