"""The vocabulary head: log-probability, entropy and exact teacher KL of sampled tokens.

With a vocabulary of 150 k the logits of one batch are larger than the model, so they exist for one
block of tokens at a time. `head_loss` takes the objective along: a block's gradients are made while
its logits are there, in three matrix products instead of four. Only tokens that carry loss reach
the head (`capacity`); where it is split over the `tensor` axis, what every device says of its own
rows is merged. The naive form of the same numbers lives in the tests as the oracle.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from atod_jax.core.blocks import Blocks, block_tokens, tile_rows
from atod_jax.core.logits import (
    LOWEST,
    Logits,
    Partial,
    logit_gradient,
    look,
    merge,
    merge_devices,
    stats_of,
)
from atod_jax.types import BATCH_AXES, TENSOR_AXIS, TokenStats

ROWS, VOCAB = PartitionSpec(BATCH_AXES), PartitionSpec(TENSOR_AXIS)  # how arrays are split

# Of statistics and streams of one row of tokens: a loss, and what is summed beside it.
PerToken = Callable[[TokenStats, Any], tuple[Float[Array, ""], Any]]


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """The policy that is scored, and how. Hashable, so it can be static under jit."""

    temperature: float = 1.0  # of the policy
    vocab: int = 0  # ids the policy can produce are below this; 0 = every row of the head
    forbidden: tuple[int, ...] = ()  # ids it cannot produce, e.g. padding
    mesh: Mesh | None = None  # rows over data and fsdp, vocabulary over tensor
    block: int = 0  # tokens whose logits exist at a time; 0 = `block_tokens`
    tile: int = 0  # vocabulary rows in one product; 0 = `tile_rows`

    def __post_init__(self):
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature}: log-probabilities need a value > 0")


class TeacherHead(NamedTuple):
    """A frozen teacher's final states for the same tokens, and its own output embedding."""

    states: Float[Array, "N R E"]  # of any width
    matrix: Float[Array, "V E"]  # of all rows: nothing cuts it with them


def token_stats(
    hidden: Float[Array, "N R D"],
    head: Float[Array, "V D"],
    *,
    action: Int[Array, "N R"],
    action_mask: Bool[Array, "N R"],
    cfg: HeadConfig,
    capacity: int | None = None,
    teacher: TeacherHead | None = None,
) -> TokenStats:
    """log p(a) and H(p) in nats, p = softmax(hidden @ head.T / temperature) over the support.

    With a teacher also log q(a) and KL(p || q) over the whole support. Float32 whatever the input
    type; differentiable in `hidden` and `head`, never in the teacher; zero where `action_mask` is
    false.

    Args:
      hidden: final hidden states; entry [n, r] predicts `action[n, r]`.
      head: output embedding, [V, D] as it is stored: nothing makes a transposed or padded copy.
      action: sampled ids; any valid id where masked.
      action_mask: True where a token was sampled.
      cfg: the policy that is scored.
      capacity: action tokens that a device has memory for; see `device.lines.Room`. None: all N * R
        positions. More tokens than that make every result NaN: an overflow cannot go unnoticed.
      teacher: its logits are its states times its own matrix, at the same temperature.

    Raises:
      ValueError: `capacity` below 1, or the two heads differ in their number of rows.
    """
    states, matrix = _teacher(teacher, len(head), capacity)
    tokens = _Tokens(hidden, states, action, action_mask)
    return _stats(cfg, capacity, tokens, _Rows.of(head, matrix, cfg))


def head_loss(
    hidden: Float[Array, "N R D"],
    head: Float[Array, "V D"],
    streams: Any,
    *,
    per_token: PerToken,
    action: Int[Array, "N R"],
    action_mask: Bool[Array, "N R"],
    cfg: HeadConfig,
    capacity: int | None = None,
    teacher: TeacherHead | None = None,
) -> tuple[Float[Array, ""], Any]:
    """The sum over blocks of tokens of `per_token(statistics, streams)`, and what it says besides.

    The same as `per_token(token_stats(...), streams)` for a function that is a sum over tokens, but
    the gradients of `hidden` and `head` come out of the pass that computes the value.

    Args:
      hidden, head, action, action_mask, cfg, capacity, teacher: as for `token_stats`.
      streams: a tree of [N, R] arrays; they get no gradient.
      per_token: gets the `TokenStats` of some tokens as [1, t], with zeros where `action_mask` is
        false, and their streams; returns a loss and a tree of sums. Static: hashed by identity.
    """
    states, matrix = _teacher(teacher, len(head), capacity)
    tokens = _Tokens(hidden, states, action, action_mask)
    return _loss(cfg, capacity, per_token, tokens, _Rows.of(head, matrix, cfg), streams)


def support_bias(rows: int, *, vocab: int, forbidden: tuple[int, ...]) -> Float[Array, "V"]:
    """0 on ids the policy can produce, very negative on the others; see `HeadConfig`.

    Sampler and scorer add it to their logits alike, so they agree.
    """
    ids = jnp.arange(rows)
    outside = functools.reduce(
        jnp.logical_or,
        [(ids >= first) & (ids <= last) for first, last in _stretches(forbidden)],
        ids >= (vocab or rows),
    )
    return jnp.where(outside, LOWEST, 0.0)


def _stretches(ids: Sequence[int]) -> list[tuple[int, int]]:
    """(first, last) of the runs of ids without a gap; a vocabulary has few holes, and long ones."""
    known = set(ids)
    firsts = sorted(i for i in known if i - 1 not in known)
    lasts = sorted(i for i in known if i + 1 not in known)
    return list(zip(firsts, lasts, strict=True))


# ------------------------------------------------------------------- forward and backward


class _Tokens(NamedTuple):
    """What the head reads of tokens; split by rows of the batch, cut into blocks."""

    states: Any
    teacher: Any  # None without one
    action: Any
    mask: Any


class _Rows(NamedTuple):
    """What it reads of vocabulary rows; split over the tensor axis, cut into tiles."""

    matrix: Any
    teacher: Any  # None without one
    bias: Any
    number: Any

    @classmethod
    def of(cls, matrix: Array, teacher: Array | None, cfg: HeadConfig) -> "_Rows":
        bias = support_bias(len(matrix), vocab=cfg.vocab, forbidden=cfg.forbidden)
        return cls(matrix, teacher, bias, jnp.arange(len(matrix)))


def _teacher(teacher: TeacherHead | None, rows: int, capacity: int | None) -> tuple[Any, Any]:
    """Its states and matrix, without gradient."""
    if capacity is not None and capacity < 1:
        raise ValueError(f"capacity={capacity}: give at least 1 token")
    if teacher is None:
        return None, None
    if len(teacher.matrix) != rows:
        raise ValueError(
            f"the teacher's head has {len(teacher.matrix)} rows, the student's {rows}: an exact KL "
            "compares the same ids; pad the smaller and set vocab to the shared ids"
        )
    return jax.lax.stop_gradient((teacher.states, teacher.matrix))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _stats(cfg: HeadConfig, capacity: int | None, tokens: _Tokens, rows: _Rows) -> TokenStats:
    def local(sharded: bool, tokens: _Tokens, rows: _Rows) -> TokenStats:
        blocks, tiles = _cut(cfg, capacity, tokens, rows)

        def block(x: _Tokens) -> TokenStats:
            parts = jax.lax.map(lambda tile: look(_logits(cfg, x, tile)), tiles)
            return stats_of(_merged(parts, sharded))

        return jax.tree.map(blocks.put, jax.lax.map(block, blocks.cut(tokens)))

    return _on_mesh(cfg.mesh, local, (ROWS, VOCAB), ROWS)(tokens, rows)


def _stats_backward(
    cfg: HeadConfig, capacity: int | None, inputs: tuple[_Tokens, _Rows], ct: TokenStats
) -> tuple[_Tokens, _Rows]:
    """Makes the logits once more; `head_loss`, which knows the objective, need not."""

    def product(stats: TokenStats, ct: TokenStats) -> tuple[Array, None]:
        terms = jax.tree.leaves(jax.tree.map(jnp.vdot, stats, ct))
        return functools.reduce(jnp.add, terms), None

    return _as_inputs(_with_gradients(cfg, capacity, product, *inputs, ct)[1])


_stats.defvjp(lambda *args: (_stats(*args), args[-2:]), _stats_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _loss(
    cfg: HeadConfig,
    capacity: int | None,
    per_token: PerToken,
    *inputs: Any,
) -> tuple[Array, Any]:
    return _with_gradients(cfg, capacity, per_token, *inputs)[0]


def _loss_backward(*args: Any) -> tuple[_Tokens, _Rows, None]:
    """The gradients are there; what is said beside the loss has none."""
    gradients, (ct, _) = args[-2:]
    scaled = jax.tree.map(lambda x: (ct * x).astype(x.dtype), gradients)
    return *_as_inputs(scaled), None


def _as_inputs(gradients: tuple[Array, Array]) -> tuple[_Tokens, _Rows]:
    d_states, d_matrix = gradients
    return _Tokens(d_states, None, None, None), _Rows(d_matrix, None, None, None)


def _with_gradients(
    cfg: HeadConfig,
    capacity: int | None,
    per_token: PerToken,
    tokens: _Tokens,
    rows: _Rows,
    streams: Any,
) -> tuple[tuple[Array, Any], tuple[Array, Array]]:
    """What `head_loss` returns, and the gradients of the loss for hidden states and matrix."""

    def local(sharded: bool, tokens: _Tokens, rows: _Rows, streams: Any) -> tuple[Any, Any]:
        blocks, tiles = _cut(cfg, capacity, tokens, rows)

        def block(d_matrix: Array, both: tuple[_Tokens, Any]) -> tuple[Array, Any]:
            x, streams = both

            def seen(tile: _Rows) -> tuple[Logits, Partial]:
                logits = _logits(cfg, x, tile)
                return logits, look(logits)

            def loss(stats: TokenStats) -> tuple[Array, Any]:
                masked = jax.tree.map(lambda s: jnp.where(x.mask, s, 0.0), stats)
                return per_token(*jax.tree.map(lambda s: s[None], (masked, streams)))

            def gradients(carry: tuple[Array, Array], of: Any) -> tuple[Any, None]:
                (d_states, d_matrix), (number, tile, logits) = carry, of
                dz = logit_gradient(logits, part, stats=stats, ct=ct) * (1 / cfg.temperature)
                # both products read it; left to itself, a TPU makes it twice
                dz = jax.lax.optimization_barrier(dz.astype(tile.matrix.dtype))
                d_states += _dot("tv,vd->td", dz, tile.matrix)
                return (d_states, d_matrix.at[number].add(_dot("tv,td->vd", dz, x.states))), None

            logits, parts = jax.lax.map(seen, tiles)
            part = _merged(parts, sharded)
            stats = stats_of(part)
            out, ct = jax.value_and_grad(loss, has_aux=True)(stats)
            carry = jnp.zeros(x.states.shape, jnp.float32), d_matrix
            of = jnp.arange(len(tiles.number)), tiles, logits
            (d_states, d_matrix), _ = jax.lax.scan(gradients, carry, of)
            if sharded:
                d_states = jax.lax.psum(d_states, TENSOR_AXIS)
            return d_matrix, (out, d_states.astype(x.states.dtype))

        d_matrix = jnp.full(tiles.matrix.shape, blocks.zero, jnp.float32)
        d_matrix, (out, d_states) = jax.lax.scan(block, d_matrix, blocks.cut((tokens, streams)))
        out = jax.tree.map(lambda x: blocks.zero + jnp.sum(x, axis=0), out)
        if sharded:
            out, d_matrix = jax.lax.psum((out, d_matrix), BATCH_AXES)
        d_matrix = d_matrix.reshape(rows.matrix.shape).astype(rows.matrix.dtype)
        return out, (blocks.put(d_states), d_matrix)

    specs = (ROWS, VOCAB, ROWS), (PartitionSpec(), (ROWS, VOCAB))
    return _on_mesh(cfg.mesh, local, *specs)(tokens, rows, streams)


_loss.defvjp(_with_gradients, _loss_backward)


# ------------------------------------------------------------------- blocks, tiles, devices


def _cut(
    cfg: HeadConfig, capacity: int | None, tokens: _Tokens, rows: _Rows
) -> tuple[Blocks, _Rows]:
    """The blocks of a device's tokens, and its vocabulary rows as tiles [K, V / K, ...]."""
    count, platform = len(rows.number), jax.default_backend()
    block = cfg.block or block_tokens(count, platform=platform)
    tile = cfg.tile or tile_rows(count, platform=platform)
    tiles = jax.tree.map(lambda x: x.reshape(-1, tile, *x.shape[1:]), rows)
    return Blocks.of(tokens.mask, capacity, block=block), tiles


def _logits(cfg: HeadConfig, x: _Tokens, tile: _Rows) -> Logits:
    """Of a block over a tile."""

    def product(states: Array, matrix: Array) -> Array:
        return _dot("td,vd->tv", states, matrix) * (1 / cfg.temperature) + tile.bias[None]

    y = None if tile.teacher is None else product(x.teacher, tile.teacher)
    return Logits(product(x.states, tile.matrix), y, x.action[:, None] == tile.number[None])


def _merged(parts: Partial, sharded: bool) -> Partial:  # of the tiles of this device, then of all
    part = merge(parts, axis=0)
    return merge_devices(part, TENSOR_AXIS) if sharded else part


_dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _on_mesh(
    mesh: Mesh | None, local: Callable[..., Any], in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """`local(sharded, ...)` on every device's part, or on everything without a mesh."""
    if mesh is None or mesh.size == 1:
        return functools.partial(local, False)
    local = functools.partial(local, True)
    return jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
