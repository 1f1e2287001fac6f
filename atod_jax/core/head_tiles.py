"""The vocabulary head of one device, tile by tile: running statistics forward, recompute backward.

Plain XLA. The largest array is a tile, `token_block` tokens by `vocab_block` vocabulary rows: small
ones stay in the cache of a CPU, tiles of all vocabulary rows keep a GPU's matrix units busy.
`head_pallas` does the same inside one kernel; `fused` chooses, and merges shards.

Per token, with logits z (student) and y (teacher) of the rows seen so far:
    top = max z          exp_sum = sum exp(z - top)      weighted_sum = sum exp(z - top) (z - top)
    teacher.top = max y  teacher.exp_sum = sum exp(y - teacher.top)
    cross = sum exp(z - top) ((z - top) - (y - teacher.top))
so that log Z = top + log exp_sum, H = log exp_sum - weighted_sum / exp_sum, and
KL(student || teacher) = cross / exp_sum - log exp_sum + log teacher.exp_sum. Everything is relative
to the maxima, so nothing large is subtracted from anything large.
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


class Factors(NamedTuple):
    """What makes logits: `states @ matrix.T * scale + bias`."""

    states: Float[Array, "T D"]
    matrix: Float[Array, "V D"]


class Head(NamedTuple):
    """What the statistics are computed from; all of one device."""

    student: Factors
    teacher: Factors | None  # of any width, over the same vocabulary rows
    bias: Float[Array, "V"]  # added to the logits of both; very negative outside the support
    action: Int[Array, "T"]  # row of the sampled id; outside 0..V-1 if on another device

    @property
    def models(self) -> list[Factors]:
        """The student, and the teacher if there is one."""
        return [self.student] if self.teacher is None else [self.student, self.teacher]

    @property
    def states(self) -> tuple[Array, ...]:
        """Those of the models."""
        return tuple(model.states for model in self.models)


class TeacherPartial(NamedTuple):
    """What a teacher adds to the statistics of some vocabulary rows."""

    top: Float[Array, "T"]
    exp_sum: Float[Array, "T"]
    action_logit: Float[Array, "T"]
    cross: Float[Array, "T"]


class Partial(NamedTuple):
    """Statistics of some vocabulary rows, float32 per token."""

    top: Float[Array, "T"]
    exp_sum: Float[Array, "T"]
    weighted_sum: Float[Array, "T"]
    action_logit: Float[Array, "T"]  # logit of the action, 0 if it is not among the rows
    teacher: TeacherPartial | None = None


class TeacherSaved(NamedTuple):
    """What the backward pass needs per token of a teacher."""

    log_z: Float[Array, "T"]
    kl: Float[Array, "T"]


class Saved(NamedTuple):
    """What the backward pass needs per token besides its inputs."""

    log_z: Float[Array, "T"]
    entropy: Float[Array, "T"]
    teacher: TeacherSaved | None = None


class Cotangents(NamedTuple):
    """Gradients that come in, per token."""

    logp: Float[Array, "T"]
    entropy: Float[Array, "T"]
    kl: Float[Array, "T"] | None = None


# (student's, teacher's or None) logits of the first tiles, float32 [tiles, blocks, t, v]
Kept = tuple[Array, Array | None] | None


def logits(factors: Factors, bias: Float[Array, "V"], *, scale: float) -> Float[Array, "T V"]:
    """Float32 logits of a tile, whatever the type of its factors."""
    product = jnp.einsum("td,vd->tv", *factors, preferred_element_type=jnp.float32)
    return product * scale + bias[None, :]


def tile_partial(
    z: Float[Array, "T V"], y: Float[Array, "T V"] | None, *, hit: Bool[Array, "T V"]
) -> Partial:
    """The statistics of one tile; `hit` is true where the column is the token's action."""
    top = jnp.max(z, axis=1)
    centred = z - top[:, None]
    weight = jnp.exp(centred)
    student = Partial(
        top=top,
        exp_sum=jnp.sum(weight, axis=1),
        weighted_sum=jnp.sum(weight * centred, axis=1),
        action_logit=jnp.sum(jnp.where(hit, z, 0.0), axis=1),
    )
    if y is None:
        return student
    teacher_top = jnp.max(y, axis=1)
    teacher_centred = y - teacher_top[:, None]
    teacher = TeacherPartial(
        top=teacher_top,
        exp_sum=jnp.sum(jnp.exp(teacher_centred), axis=1),
        action_logit=jnp.sum(jnp.where(hit, y, 0.0), axis=1),
        cross=jnp.sum(weight * (centred - teacher_centred), axis=1),
    )
    return student._replace(teacher=teacher)


def empty_partial(shape: tuple[int, ...], *, teacher: bool) -> Partial:
    """The statistics of no rows."""
    zero, low = jnp.zeros(shape, jnp.float32), jnp.full(shape, LOWEST, jnp.float32)
    return Partial(
        low, zero, zero, zero, TeacherPartial(low, zero, zero, zero) if teacher else None
    )


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
    student = Partial(
        top=top,
        exp_sum=total(keep * parts.exp_sum),
        weighted_sum=total(keep * (parts.weighted_sum + parts.exp_sum * lift)),
        action_logit=total(parts.action_logit),
    )
    if parts.teacher is None:
        return student
    teacher_top = largest(parts.teacher.top)
    teacher_lift = parts.teacher.top - teacher_top
    teacher = TeacherPartial(
        top=teacher_top,
        exp_sum=total(jnp.exp(teacher_lift) * parts.teacher.exp_sum),
        action_logit=total(parts.teacher.action_logit),
        cross=total(keep * (parts.teacher.cross + parts.exp_sum * (lift - teacher_lift))),
    )
    return student._replace(teacher=teacher)


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
    y: Float[Array, "T V"] | None,
    *,
    hit: Bool[Array, "T V"],
    saved: Saved,
    ct: Cotangents,
) -> Float[Array, "T V"]:
    """dL/dz of a tile: g_lp (1[a] - p) - g_H p (log p + H) + g_KL p (log p - log q - KL)."""
    logp = z - saved.log_z[:, None]
    slope = ct.entropy[:, None] * (logp + saved.entropy[:, None]) + ct.logp[:, None]
    if y is not None and saved.teacher is not None and ct.kl is not None:
        excess = (logp - (y - saved.teacher.log_z[:, None])) - saved.teacher.kl[:, None]
        slope = slope - ct.kl[:, None] * excess
    return jnp.where(hit, ct.logp[:, None], 0.0) - jnp.exp(logp) * slope


def forward(
    head: Head, *, scale: float, token_block: int, vocab_block: int, keep_bytes: int = 0
) -> tuple[Partial, Kept]:
    """Statistics of all vocabulary rows of this device, for every token.

    Args:
      head: states, matrices and actions.
      scale: 1 / temperature.
      token_block: tokens per tile.
      vocab_block: vocabulary rows per tile.
      keep_bytes: memory for logits that `backward` then need not compute again.

    Returns:
      The statistics, and the logits of the first tiles of rows, as many as the memory holds.
    """
    size, starts = _vocab_tiles(head.bias.shape[0], vocab_block)
    cut, joined = _token_blocks(head.action.shape[0], token_block)
    inputs = jax.tree.map(cut, (head.action, head.states))

    def tile(running, at, *, keep):
        columns = _Columns.at(at, size, head)

        def block(x):
            running, (action, states) = x
            z, y = columns.logits(states, scale)
            merged = merge_two(running, tile_partial(z, y, hit=columns.hit(action)))
            return merged, (z, y) if keep else None

        return jax.lax.map(block, (running, inputs))

    running = empty_partial(inputs[0].shape, teacher=head.teacher is not None)
    tile_bytes = 4 * inputs[0].size * size * len(head.models)
    count = min(len(starts), keep_bytes // tile_bytes)  # tiles whose logits are kept
    kept = None
    if count:
        running, kept = jax.lax.scan(functools.partial(tile, keep=True), running, starts[:count])
    if count < len(starts):
        running, _ = jax.lax.scan(functools.partial(tile, keep=False), running, starts[count:])
    return jax.tree.map(joined, running), kept


def backward(
    head: Head,
    kept: Kept,
    *,
    saved: Saved,
    ct: Cotangents,
    scale: float,
    token_block: int,
    vocab_block: int,
) -> tuple[Float[Array, "T D"], Float[Array, "V D"]]:
    """Float32 gradients of the student's states and matrix.

    Args:
      head: as given to `forward`.
      kept: as `forward` returned them; other logits are computed again.
      saved: what follows from the statistics of `forward`.
      ct: gradients that come in.
      scale, token_block, vocab_block: as given to `forward`.
    """
    vocab, width = head.student.matrix.shape
    size, starts = _vocab_tiles(vocab, vocab_block)
    cut, joined = _token_blocks(head.action.shape[0], token_block)
    inputs = jax.tree.map(cut, (head.action, head.states, saved, ct))
    kind = head.student.matrix.dtype

    def tile(carry, x):
        at, kept = x
        d_states, d_matrix = carry
        columns = _Columns.at(at, size, head)

        def block(d_tile, x):
            d_block, (action, states, saved, ct), known = x
            z, y = columns.logits(states, scale) if known is None else known
            dz = logit_gradient(z, y, hit=columns.hit(action), saved=saved, ct=ct)
            dz = (dz * scale).astype(kind)
            d_block += jnp.dot(dz, columns.matrices[0], preferred_element_type=jnp.float32)
            d_tile += jnp.einsum("tv,td->vd", dz, states[0], preferred_element_type=jnp.float32)
            return d_tile, d_block

        d_tile = jnp.zeros((size, width), jnp.float32)
        d_tile, d_states = jax.lax.scan(block, d_tile, (d_states, inputs, kept))
        d_tile += jax.lax.dynamic_slice_in_dim(d_matrix, at[0], size)  # the last may overlap
        d_matrix = jax.lax.dynamic_update_slice_in_dim(d_matrix, d_tile, at[0], 0)
        return (d_states, d_matrix), None

    carry = jnp.zeros((*inputs[0].shape, width)), jnp.zeros((vocab, width))
    count = 0 if kept is None else len(kept[0])
    if count:
        carry, _ = jax.lax.scan(tile, carry, (starts[:count], kept))
    if count < len(starts):
        carry, _ = jax.lax.scan(tile, carry, (starts[count:], None))
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
    def at(cls, at: Array, size: int, head: Head) -> "_Columns":
        start, first = at
        number = start + jnp.arange(size)
        own = number >= first
        bias = jax.lax.dynamic_slice_in_dim(head.bias, start, size)
        matrices = tuple(jax.lax.dynamic_slice_in_dim(m.matrix, start, size) for m in head.models)
        return cls(
            number=jnp.where(own, number, NOWHERE),
            bias=jnp.where(own, bias, LOWEST),
            matrices=matrices,
        )

    def logits(self, states: tuple[Array, ...], scale: float) -> tuple[Array, Array | None]:
        """(student's logits, teacher's logits or None)."""
        models = zip(states, self.matrices, strict=True)
        z, *y = (logits(Factors(*model), self.bias, scale=scale) for model in models)
        return z, y[0] if y else None

    def hit(self, action: Array) -> Array:  # where the column is the token's action
        return action[:, None] == self.number[None, :]


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
