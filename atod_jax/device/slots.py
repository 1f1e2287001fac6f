"""The slots in which actions are written, and the programs that fill, advance and move them.

A slot is a row of the key-value cache with the action that is being written in it. Prompts enter
free slots, all slots are fed a chunk of tokens, and those whose action has ended are free again.
The draw of token t depends on fold_in(fold_in(fold_in(key, turn), row), t) and on the prompt only:
not on the slot, its neighbours, or when it was filled.

Every function works on the rows of all devices. `shards` says how many devices split the rows: each
fills its slots from its own prompts and moves its own rows, so no keys and values travel.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from atod_jax.device.sampling import SamplingConfig, pick
from atod_jax.models import Cache, LanguageModel, Prompts
from atod_jax.models.serving import commit, empty_cache, enter, longer_cache
from atod_jax.types import BATCH_AXES, TENSOR_AXIS


class Slots(struct.PyTreeNode, kw_only=True):
    """What is being written, a row per slot."""

    cache: Cache
    key: Key[Array, "B"]  # of the action
    hidden: Float[Array, "B D"]  # of the prompt's last token, which predicts the first one
    token: Int[Array, "B"]  # drawn last, not yet fed
    drawn: Int[Array, "B"]  # tokens of the action so far
    live: Bool[Array, "B"]  # the action goes on


class Entry(NamedTuple):
    """A prompt and the slot it enters; numbers, in this order, in a row of `fill`'s table."""

    slot: int  # among those of its shard
    line: int  # where the prompt was read, among the lines of its shard
    part: int  # which prompt of the line
    start: int  # its first column
    length: int
    turn: int
    row: int


# ------------------------------------------------------------------- pure functions


def empty(model: LanguageModel, rows: int, columns: int, *, cfg: SamplingConfig) -> Slots:
    """Free slots of `columns` columns: for a prompt, and what has been committed of an action."""
    cache = empty_cache(model.config, rows, columns, recent=cfg.chunk)
    return Slots(
        cache=cache,
        key=jax.random.wrap_key_data(jnp.zeros((rows, 2), jnp.uint32)),
        hidden=jnp.zeros((rows, model.config.hidden_size), model.config.dtype),
        token=jnp.zeros(rows, jnp.int32),
        drawn=jnp.zeros(rows, jnp.int32),
        live=jnp.zeros(rows, bool),
    )


def fill(
    slots: Slots,
    prompts: Prompts,
    hidden: Float[Array, "L M D"],
    *,
    entries: Int[Array, "n 7"],
    key: UInt32[Array, "2"],
    shards: int,
) -> Slots:
    """Prompts that have been read enter their slots.

    Args:
      slots: between two chunks.
      prompts: keys and values of `model.prefill`.
      hidden: of `model.prefill`.
      entries: `Entry` rows, those of a shard together; a slot past the last one: nothing.
      key: data of the random key of all actions.
      shards: devices that split slots, lines and entries.
    """
    base = jax.random.wrap_key_data(key)

    def one(slots: Slots, prompts: Prompts, hidden: Array, entries: Array) -> Slots:
        slot, line, part, start, length, turn, row = entries.T
        keys = jax.vmap(lambda turn, row: jax.random.fold_in(jax.random.fold_in(base, turn), row))

        def put(into: Array, new: Any) -> Array:
            return into.at[slot].set(new, mode="drop")

        return slots.replace(
            cache=enter(slots.cache, prompts, slot=slot, line=line, start=start, length=length),
            key=put(slots.key, keys(turn, row)),
            hidden=put(slots.hidden, hidden[line, part]),
            drawn=put(slots.drawn, 0),
            live=put(slots.live, True),
        )

    return _per_shard(one, shards, slots, prompts, hidden, entries)


def decode(
    model: LanguageModel,
    weights: Any,
    slots: Slots,
    *,
    temperature: Float[Array, ""],
    cfg: SamplingConfig,
    shards: int,
) -> tuple[Slots, Int[Array, "B T"]]:
    """Draws up to a chunk of tokens in every slot; stops when no action goes on.

    Args:
      model, weights: `weights` of `model.serve`.
      slots: between two chunks.
      temperature: of the draws; 0 = greedy.
      cfg: static.
      shards: devices that split the slots.

    Returns:
      The slots, and all that the host wants to know in one array, for `Written.read`.
    """
    head, cache = model.head(weights), slots.cache

    def draw(state: _Drawing, hidden: Array, who: Array, column: Array) -> _Drawing:
        keys = jax.vmap(jax.random.fold_in)(slots.key, state.drawn)
        uniform = jax.vmap(jax.random.uniform)(keys)
        logits = jnp.einsum("vd,bd->vb", head, hidden, preferred_element_type=jnp.float32)
        token, logp = pick(logits, uniform, temperature=temperature, cfg=cfg)
        drawn = state.drawn + who
        ended = functools.reduce(
            jnp.logical_or, [token == e for e in cfg.eos_ids], drawn >= cfg.max_new_tokens
        )
        at = (jnp.zeros_like(column), column)
        return _Drawing(
            token=jnp.where(who, token, state.token),
            drawn=drawn,
            live=state.live & ~(who & ended),
            tokens=jax.lax.dynamic_update_slice(state.tokens, token[:, None], at),
            logp=jax.lax.dynamic_update_slice(state.logp, logp[:, None], at),
        )

    def advance(carry: tuple[_Drawing, Cache]) -> tuple[_Drawing, Cache]:
        state, cache = carry
        hidden, cache = model.step(weights, state.token, cache)
        return draw(state, hidden, state.live, cache.written), cache

    shape = (slots.live.shape[0], cfg.chunk + 1)
    tokens, logp = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32)
    state = _Drawing(slots.token, slots.drawn, slots.live, tokens, logp)
    fresh = state.live & (state.drawn == 0)
    state = jax.lax.cond(
        jnp.any(fresh), lambda s: draw(s, slots.hidden, fresh, cache.written), lambda s: s, state
    )
    state, cache = jax.lax.while_loop(
        lambda carry: (carry[1].written < cfg.chunk) & jnp.any(carry[0].live),
        advance,
        (state, cache),
    )
    steps = jnp.broadcast_to(cache.written, state.live.shape)
    if cfg.room:  # else every action has ended
        cache = _per_shard(commit, shards, cache)
    cache = cache.replace(
        length=jnp.where(state.live, cache.length, 0), written=jnp.zeros_like(cache.written)
    )
    slots = slots.replace(cache=cache, token=state.token, drawn=state.drawn, live=state.live)
    bits = jax.lax.bitcast_convert_type(state.logp, jnp.int32)
    numbers = jnp.stack([state.drawn, state.live.astype(jnp.int32), steps], axis=1)
    return slots, jnp.concatenate([state.tokens, bits, numbers], axis=1)


class _Drawing(NamedTuple):
    """What the loop of `decode` carries beside the cache."""

    token: Int[Array, "B"]
    drawn: Int[Array, "B"]
    live: Bool[Array, "B"]
    tokens: Int[Array, "B C+1"]
    logp: Float[Array, "B C+1"]


class Written(NamedTuple):
    """A chunk on the host.

    Column 0 is of slots that were filled since the last chunk; the others begin at column 1.
    """

    tokens: np.ndarray  # i32[B, C + 1]
    logp: np.ndarray  # f32[B, C + 1]
    drawn: np.ndarray  # i32[B], tokens of the action so far
    live: np.ndarray  # bool[B], the action goes on
    steps: int  # that were run

    @classmethod
    def read(cls, table: np.ndarray) -> "Written":
        """What `decode` has put into one array."""
        tokens, bits, numbers = np.split(table, [table.shape[1] // 2 - 1, -3], axis=1)
        logp = np.ascontiguousarray(bits).view(np.float32)
        return cls(tokens, logp, numbers[:, 0], numbers[:, 1] > 0, int(numbers[0, 2]))


def move(slots: Slots, source: Int[Array, "n"], *, columns: int, shards: int) -> Slots:
    """Other slots with the same actions: fewer, or with room for longer prompts.

    Args:
      slots: between two chunks.
      source: the slot, among those of its shard, that each of the new ones continues; any free one
        for those that stay free.
      columns: of the new cache; at least as many as now.
      shards: devices that split the slots.
    """

    def one(slots: Slots, source: Array) -> Slots:
        # recent columns are empty between two chunks: they go along for their shape alone
        slots = jax.tree.map(lambda x: x[source] if x.ndim else x, slots)
        return slots.replace(cache=longer_cache(slots.cache, columns))

    return _per_shard(one, shards, slots, source)


def _per_shard(function: Callable[..., Any], shards: int, *trees: Any) -> Any:
    """The function of each shard's rows; scalars are the same for all."""
    if shards == 1:
        return function(*trees)

    def folded(x: Array) -> Array:
        return x.reshape(shards, -1, *x.shape[1:]) if x.ndim else jnp.broadcast_to(x, (shards,))

    def unfolded(x: Array) -> Array:
        return x.reshape(-1, *x.shape[2:]) if x.ndim > 1 else x[0]

    return jax.tree.map(unfolded, jax.vmap(function)(*jax.tree.map(folded, trees)))


# ------------------------------------------------------------------- compiled


class Programs(NamedTuple):
    """The functions above and the model's prefill, compiled for one layout."""

    empty: Callable[[int, int], Slots]  # (rows, columns)
    prefill: Callable[..., tuple[Array, Prompts]]  # (weights, tokens, lengths)
    fill: Callable[..., Slots]  # (slots, prompts, hidden, entries, key)
    decode: Callable[..., tuple[Slots, Array]]  # (weights, slots, temperature)
    move: Callable[..., Slots]  # (slots, source, columns)


@functools.cache
def programs(model: LanguageModel, cfg: SamplingConfig, mesh: Mesh | None) -> Programs:
    """The programs of `cfg.program`; policies that differ in host settings share them."""
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES) if mesh else 1
    places = functools.partial(_places, mesh, model.config.num_kv_heads)

    def placed(name: str, function: Callable, **options: Any) -> Callable:
        def run(*args: Any) -> Any:
            return places(function(*args))

        run.__name__ = name  # under which it is compiled
        return jax.jit(run, **options)

    def filled(slots: Slots, prompts: Prompts, hidden: Array, entries: Array, key: Array) -> Slots:
        return fill(slots, prompts, hidden, entries=entries, key=key, shards=shards)

    def decoded(weights: Any, slots: Slots, temperature: Array) -> tuple[Slots, Array]:
        return decode(model, weights, slots, temperature=temperature, cfg=cfg, shards=shards)

    def moved(slots: Slots, source: Array, columns: int) -> Slots:
        return move(slots, source, columns=columns, shards=shards)

    return Programs(
        empty=placed("empty", functools.partial(empty, model, cfg=cfg), static_argnums=(0, 1)),
        prefill=placed("prefill", model.prefill),
        fill=placed("fill", filled, donate_argnums=0),
        decode=placed("decode", decoded, donate_argnums=1),
        move=placed("move", moved, static_argnums=2),
    )


def _places(mesh: Mesh | None, kv_heads: int, tree: Any) -> Any:
    """Said of every result, so that it is placed as the next program expects it."""
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, shardings(mesh, kv_heads, tree))


def shardings(mesh: Mesh, kv_heads: int, tree: Any) -> Any:
    """Rows split over data and fsdp, the heads of keys and values over tensor where they divide."""
    heads = TENSOR_AXIS if kv_heads % mesh.shape[TENSOR_AXIS] == 0 else None

    def one(x: Any, axis: int = 2) -> NamedSharding:
        split = (BATCH_AXES, *[None] * (axis - 1), heads) if x.ndim == 4 else (BATCH_AXES,)
        return NamedSharding(mesh, PartitionSpec(*split[: x.ndim]))

    def cache_or_array(x: Any) -> Any:
        if isinstance(x, Cache):
            return jax.tree.map(functools.partial(one, axis=x.form.k.index(2)), x)
        return one(x)

    return jax.tree.map(cache_or_array, tree, is_leaf=lambda x: isinstance(x, Cache))
