"""The vocabulary head of one device, tile by tile: running statistics forward, recompute backward.

Plain XLA. A tile is `token_block` tokens by `vocab_block` vocabulary rows, the largest array there
is: small tiles stay in the cache of a CPU, tiles of all vocabulary rows keep a GPU's matrix units
busy. `head_pallas` does the same inside one kernel; `fused` chooses, and merges shards.

Per token, with logits z (student) and y (teacher) of the rows seen so far:
    top = max z             mass = sum exp(z - top)      heat = sum exp(z - top) (z - top)
    t_top = max y           t_mass = sum exp(y - t_top)
    cross = sum exp(z - top) ((z - top) - (y - t_top))
so that log Z = top + log mass, H = log mass - heat / mass, and
KL(student || teacher) = cross / mass - log mass + log t_mass. Everything is relative to the maxima,
so nothing large is subtracted from anything large.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

LOWEST = -1e30  # finite: 0 * (it - x) stays 0
NOWHERE = -(2**30)  # no action, not even one counted from another device, has this number
Reduction = Callable[[Array], Array]


class Head(NamedTuple):
    """What turns states into logits: `states @ matrix.T * scale + bias`."""

    states: Float[Array, "T D"]
    matrix: Float[Array, "V D"]


class Partial(NamedTuple):
    """Statistics of some vocabulary rows, float32 per token."""

    top: Float[Array, "T"]
    mass: Float[Array, "T"]
    heat: Float[Array, "T"]
    picked: Float[Array, "T"]  # logit of the action, 0 if it is not among the rows
    t_top: Float[Array, "T"] | None = None
    t_mass: Float[Array, "T"] | None = None
    t_picked: Float[Array, "T"] | None = None
    cross: Float[Array, "T"] | None = None


class Saved(NamedTuple):
    """What the backward pass needs per token besides its inputs."""

    log_z: Float[Array, "T"]
    entropy: Float[Array, "T"]
    t_log_z: Float[Array, "T"] | None = None
    kl: Float[Array, "T"] | None = None


class Cotangents(NamedTuple):
    """Gradients that come in, per token."""

    logp: Float[Array, "T"]
    entropy: Float[Array, "T"]
    kl: Float[Array, "T"] | None = None


# (student's, teacher's or None) logits of the first tiles, float32 [tiles, blocks, t, v]
Kept = tuple[Array, Array | None] | None


def logits(head: Head, bias: Float[Array, "V"], scale: float) -> Float[Array, "T V"]:
    """Float32 logits of a tile, whatever the type of its factors."""
    product = jnp.einsum("td,vd->tv", *head, preferred_element_type=jnp.float32)
    return product * scale + bias[None, :]


def tile_partial(
    z: Float[Array, "T V"], hit: Bool[Array, "T V"], y: Float[Array, "T V"] | None
) -> Partial:
    """The statistics of one tile; `hit` is true where the column is the token's action."""
    top = jnp.max(z, axis=1)
    centred = z - top[:, None]
    weight = jnp.exp(centred)
    ours = Partial(
        top=top,
        mass=jnp.sum(weight, axis=1),
        heat=jnp.sum(weight * centred, axis=1),
        picked=jnp.sum(jnp.where(hit, z, 0.0), axis=1),
    )
    if y is None:
        return ours
    t_top = jnp.max(y, axis=1)
    t_centred = y - t_top[:, None]
    return ours._replace(
        t_top=t_top,
        t_mass=jnp.sum(jnp.exp(t_centred), axis=1),
        t_picked=jnp.sum(jnp.where(hit, y, 0.0), axis=1),
        cross=jnp.sum(weight * (centred - t_centred), axis=1),
    )


def empty_partial(shape: tuple[int, ...], *, teacher: bool) -> Partial:
    """The statistics of no rows."""
    zero, low = jnp.zeros(shape, jnp.float32), jnp.full(shape, LOWEST, jnp.float32)
    theirs = (low, zero, zero, zero) if teacher else ()
    return Partial(low, zero, zero, zero, *theirs)


def merge(parts: Partial, *, largest: Reduction, total: Reduction) -> Partial:
    """The statistics of the union of disjoint sets of rows.

    Args:
      parts: one Partial per set, along an axis that the two reductions remove: a leading axis, or
        the devices, if they are collectives.
      largest: the maximum over the sets.
      total: the sum over the sets.
    """
    top = largest(parts.top)
    lift = parts.top - top  # <= 0
    keep = jnp.exp(lift)
    merged = Partial(
        top=top,
        mass=total(keep * parts.mass),
        heat=total(keep * (parts.heat + parts.mass * lift)),
        picked=total(parts.picked),
    )
    if parts.t_top is None:
        return merged
    t_top = largest(parts.t_top)
    t_lift = parts.t_top - t_top
    return merged._replace(
        t_top=t_top,
        t_mass=total(jnp.exp(t_lift) * parts.t_mass),
        t_picked=total(parts.t_picked),
        cross=total(keep * (parts.cross + parts.mass * (lift - t_lift))),
    )


def merge_two(a: Partial, b: Partial) -> Partial:
    """The statistics of the union of two disjoint sets of rows."""
    both = jax.tree.map(lambda *x: jnp.stack(x), a, b)
    merged = merge(
        both,
        largest=functools.partial(jnp.max, axis=0, keepdims=True),
        total=functools.partial(jnp.sum, axis=0, keepdims=True),
    )
    return jax.tree.map(lambda x: x[0], merged)


def logit_gradient(
    z: Float[Array, "T V"],
    hit: Bool[Array, "T V"],
    y: Float[Array, "T V"] | None,
    saved: Saved,
    ct: Cotangents,
) -> Float[Array, "T V"]:
    """dL/dz of a tile: g_lp (1[a] - p) - g_H p (log p + H) + g_KL p (log p - log q - KL)."""
    logp = z - saved.log_z[:, None]
    slope = ct.entropy[:, None] * (logp + saved.entropy[:, None]) + ct.logp[:, None]
    if y is not None:
        excess = (logp - (y - saved.t_log_z[:, None])) - saved.kl[:, None]
        slope = slope - ct.kl[:, None] * excess
    return jnp.where(hit, ct.logp[:, None], 0.0) - jnp.exp(logp) * slope


def forward(
    student: Head,
    bias: Float[Array, "V"],
    action: Int[Array, "T"],
    teacher: Head | None,
    *,
    scale: float,
    token_block: int,
    vocab_block: int,
    keep_bytes: int = 0,
) -> tuple[Partial, Kept]:
    """Statistics of all vocabulary rows of this device, for every token.

    Args:
      student: states and head matrix.
      bias: added to the logits of both; very negative on rows outside the support.
      action: row of the sampled id; any number outside 0..V-1 where the row lives elsewhere.
      teacher: its own states and matrix, of any width; same V.
      scale: 1 / temperature.
      token_block: tokens per tile.
      vocab_block: vocabulary rows per tile.
      keep_bytes: room for logits that `backward` then need not make again.

    Returns:
      The statistics, and the logits of the first tiles of rows, as many as there is room for.
    """
    size, starts = _vocab_tiles(student.matrix.shape[0], vocab_block)
    cut, joined = _token_blocks(action.shape[0], token_block)
    inputs = jax.tree.map(cut, (action, _states(student, teacher)))

    def tile(running, at, *, keep):
        columns = _Columns.at(at, size, bias, student, teacher)

        def block(x):
            running, (action, states) = x
            z, y = columns.logits(states, scale)
            merged = merge_two(running, tile_partial(z, columns.hit(action), y))
            return merged, (z, y) if keep else None

        return jax.lax.map(block, (running, inputs))

    running = empty_partial(inputs[0].shape, teacher=teacher is not None)
    heads = 1 if teacher is None else 2
    room = min(len(starts), keep_bytes // (4 * inputs[0].size * size * heads))
    kept = None
    if room:
        running, kept = jax.lax.scan(functools.partial(tile, keep=True), running, starts[:room])
    if room < len(starts):
        running, _ = jax.lax.scan(functools.partial(tile, keep=False), running, starts[room:])
    return jax.tree.map(joined, running), kept


def backward(
    student: Head,
    bias: Float[Array, "V"],
    action: Int[Array, "T"],
    teacher: Head | None,
    saved: Saved,
    ct: Cotangents,
    kept: Kept,
    *,
    scale: float,
    token_block: int,
    vocab_block: int,
) -> tuple[Float[Array, "T D"], Float[Array, "V D"]]:
    """Float32 gradients of the student's states and matrix; logits not kept are made again."""
    vocab, width = student.matrix.shape
    size, starts = _vocab_tiles(vocab, vocab_block)
    cut, joined = _token_blocks(action.shape[0], token_block)
    inputs = jax.tree.map(cut, (action, _states(student, teacher), saved, ct))
    kind = student.matrix.dtype

    def tile(carry, x):
        at, kept = x
        d_states, d_matrix = carry
        columns = _Columns.at(at, size, bias, student, teacher)

        def block(d_tile, x):
            d_block, (action, states, saved, ct), known = x
            z, y = columns.logits(states, scale) if known is None else known
            dz = logit_gradient(z, columns.hit(action), y, saved, ct)
            dz = (dz * scale).astype(kind)
            d_block += jnp.dot(dz, columns.matrices[0], preferred_element_type=jnp.float32)
            d_tile += jnp.einsum("tv,td->vd", dz, states[0], preferred_element_type=jnp.float32)
            return d_tile, d_block

        d_tile = jnp.zeros((size, width), jnp.float32)
        d_tile, d_states = jax.lax.scan(block, d_tile, (d_states, inputs, kept))
        there = jax.lax.dynamic_slice_in_dim(d_matrix, at[0], size)  # the last tile may overlap
        d_matrix = jax.lax.dynamic_update_slice_in_dim(d_matrix, there + d_tile, at[0], 0)
        return (d_states, d_matrix), None

    carry = jnp.zeros((*inputs[0].shape, width)), jnp.zeros((vocab, width))
    room = 0 if kept is None else len(kept[0])
    if room:
        carry, _ = jax.lax.scan(tile, carry, (starts[:room], kept))
    if room < len(starts):
        carry, _ = jax.lax.scan(tile, carry, (starts[room:], None))
    d_states, d_matrix = carry
    return joined(d_states), d_matrix


class _Columns(NamedTuple):
    """The vocabulary rows of one tile.

    The last tile is moved back to end with the vocabulary; the rows it shares with the tile before
    it are switched off, so the matrix needs no padding.
    """

    number: Int[Array, "S"]  # NOWHERE where switched off
    bias: Float[Array, "S"]
    matrices: tuple[Float[Array, "S D"], ...]  # of the student, and of the teacher if there is one

    @classmethod
    def at(cls, at, size, bias, student, teacher):
        start, first = at
        number = start + jnp.arange(size)
        own = number >= first
        heads = [student] if teacher is None else [student, teacher]
        return cls(
            number=jnp.where(own, number, NOWHERE),
            bias=jnp.where(own, jax.lax.dynamic_slice_in_dim(bias, start, size), LOWEST),
            matrices=tuple(jax.lax.dynamic_slice_in_dim(h.matrix, start, size) for h in heads),
        )

    def logits(self, states, scale):
        """(student's logits, teacher's logits or None)."""
        z, *y = (logits(Head(*x), self.bias, scale) for x in zip(states, self.matrices))
        return z, y[0] if y else None

    def hit(self, action):
        """Where the column is the token's action."""
        return action[:, None] == self.number[None, :]


def _states(student: Head, teacher: Head | None) -> tuple[Array, ...]:
    return (student.states,) if teacher is None else (student.states, teacher.states)


def _vocab_tiles(vocab: int, block: int) -> tuple[int, Array]:
    """(rows per tile, [tiles, 2] of the row a tile begins at and the first row that is its own)."""
    count = -(-vocab // block)
    size = -(-vocab // count)
    first = jnp.arange(count) * size
    return size, jnp.stack([jnp.minimum(first, vocab - size), first], axis=1)


def _token_blocks(tokens: int, block: int):
    """Functions that cut [T, ...] into [blocks, block, ...], padded with zeros, and join it."""
    count = max(1, -(-tokens // block))
    size = -(-tokens // count)

    def cut(x):
        padding = [(0, count * size - tokens)] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, padding).reshape(count, size, *x.shape[1:])

    def joined(x):
        return x.reshape(count * size, *x.shape[2:])[:tokens]

    return cut, joined
