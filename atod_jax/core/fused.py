"""The vocabulary head: log-probability, entropy and exact teacher KL of sampled tokens in one pass.

With a vocabulary of 150 k the logits of one batch are larger than the model, so no array of
[tokens, V] ever exists: running statistics over tiles going forward, the same tiles recomputed
going backward. Only tokens that carry loss reach the head (`capacity`), and with the head split
over the `tensor` axis every device looks at its own rows and the statistics are merged. The naive
form of the same numbers lives in the tests as the oracle.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from atod_jax.core import head_pallas, head_tiles
from atod_jax.core.head_tiles import Cotangents, Head, Partial, Saved
from atod_jax.options.field import at_least, check, one_of, option
from atod_jax.types import TokenStats

BACKENDS = ("auto", "tiles", "rows", "pallas")
BATCH, VOCAB = ("data", "fsdp"), "tensor"  # mesh axes that split rows of the batch, and the head
KEPT = PartitionSpec(VOCAB, BATCH)  # every device keeps logits of its own tiles
CAPACITIES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)  # shares of all positions; one program each

_OWN = "0 = the backend's own"
_NEVER = -1e30  # logit of an id outside the support: exp is exactly 0, and 0 * logit stays 0


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the head is computed; changes memory and speed, never the numbers."""

    backend: str = option(
        "auto", "tiles (CPU) | rows (GPU: all vocabulary rows at once) | pallas (TPU)",
        one_of(*BACKENDS), pins=False,
    )  # fmt: skip
    token_block: int = option(0, "tokens per tile", at_least(0, _OWN), pins=False)
    vocab_block: int = option(0, "vocabulary rows per tile", at_least(0, _OWN), pins=False)
    keep_megabytes: float = option(
        430.0, "logits kept for the backward pass; the rest is computed again (tiles, rows)",
        at_least(0, "0 keeps nothing"), pins=False,
    )  # fmt: skip

    def __post_init__(self):
        check(self)


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """The policy that is scored, and how. Hashable, so it can be static under jit."""

    temperature: float = 1.0  # of the policy
    vocab: int = 0  # ids the policy can produce are below this; 0 = every row of the head
    forbidden: tuple[int, ...] = ()  # ids it cannot produce, e.g. padding
    tiling: Tiling = Tiling()
    mesh: Mesh | None = None  # rows over data and fsdp, vocabulary over tensor

    def __post_init__(self):
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature}: log-probabilities need a value > 0")


class Teacher(NamedTuple):
    """A frozen teacher's final states for the same tokens, and its own head (any width)."""

    hidden: Float[Array, "N R E"]
    head: Float[Array, "V E"]


def token_stats(
    hidden: Float[Array, "N R D"],
    head: Float[Array, "V D"],
    action: Int[Array, "N R"],
    action_mask: Bool[Array, "N R"],
    *,
    cfg: HeadConfig,
    capacity: int | None = None,
    teacher: Teacher | None = None,
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
      cfg: policy and tiling.
      capacity: room for action tokens, per device; see `capacity_of`. None: all N * R positions.
        More tokens than that make every result NaN: an overflow cannot go unnoticed.
      teacher: its states may be scaled by nothing but its own head; the temperature applies to it.

    Raises:
      ValueError: `capacity` below 1, or the two heads differ in their number of rows.
    """
    if capacity is not None and capacity < 1:
        raise ValueError(f"capacity={capacity}: give room for at least 1 token")
    if teacher is not None and teacher.head.shape[0] != head.shape[0]:
        raise ValueError(
            f"the teacher's head has {teacher.head.shape[0]} rows, the student's {head.shape[0]}: "
            "an exact KL compares the same ids; pad the smaller and set vocab to the shared ids"
        )
    if teacher is not None:
        teacher = jax.lax.stop_gradient(teacher)
    logp, entropy, teacher_logp, kl = _stats(
        cfg, capacity, hidden, head, action, action_mask, teacher
    )
    return TokenStats(logp=logp, entropy=entropy, teacher_logp=teacher_logp, reverse_kl=kl)


def capacity_of(action_mask: np.ndarray, *, micro_rows: int, shards: int) -> int:
    """The smallest capacity that holds every micro-batch's action tokens on every device.

    Micro-batch m takes rows m, m + M, ... of its [rows, R] minibatch (`scoring.to_micro`), and each
    of `shards` devices an equal contiguous share of them.

    Args:
      action_mask: bool[rows, R] of one minibatch, on the host.
      micro_rows: rows per micro-batch.
      shards: devices that split the rows.
    """
    rows, width = action_mask.shape
    count = rows // micro_rows
    tokens = action_mask.sum(axis=1).reshape(shards, micro_rows // shards, count).sum(axis=1)
    places = micro_rows // shards * width
    return next(c for share in CAPACITIES if (c := math.ceil(places * share)) >= tokens.max())


def support_bias(rows: int, *, vocab: int, forbidden: tuple[int, ...]) -> Float[Array, "V"]:
    """0 on ids the policy can produce, very negative on the others; see `HeadConfig`."""
    ids = jnp.arange(rows)
    outside = functools.reduce(
        jnp.logical_or, [ids == f for f in forbidden], ids >= (vocab or rows)
    )
    return jnp.where(outside, _NEVER, 0.0)


def mask_logits(
    logits: Float[Array, "T V"], *, vocab: int = 0, forbidden: tuple[int, ...] = ()
) -> Float[Array, "T V"]:
    """The logits over the support; sampler and scorer share it, so they agree."""
    return logits + support_bias(logits.shape[-1], vocab=vocab, forbidden=forbidden)[None]


# ------------------------------------------------------------------- forward and backward


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _stats(cfg, capacity, hidden, head, action, action_mask, teacher):
    logp, teacher_logp, saved, _ = _statistics(
        cfg, capacity, 0, hidden, head, action, action_mask, teacher
    )
    return logp, saved.entropy, teacher_logp, saved.kl


def _stats_forward(cfg, capacity, hidden, head, action, action_mask, teacher):
    inputs = hidden, head, action, action_mask, teacher
    keep_bytes = round(cfg.tiling.keep_megabytes * 1e6)
    logp, teacher_logp, saved, kept = _statistics(cfg, capacity, keep_bytes, *inputs)
    return (logp, saved.entropy, teacher_logp, saved.kl), (*inputs, saved, kept)


def _statistics(cfg, capacity, keep_bytes, hidden, head, action, action_mask, teacher):
    """Per token log p(a), log q(a) and what is saved; and the logits that were kept."""

    def local(offset, axes, hidden, head, action, mask, bias, teacher):
        tokens = _Tokens.of(mask, capacity)
        student, theirs = tokens.heads(hidden, head, teacher)
        engine, blocks = _engine(cfg.tiling, student.matrix.shape[0])
        part, kept = engine.forward(
            student, bias, tokens.take(action) - offset, theirs,
            scale=1 / cfg.temperature, keep_bytes=keep_bytes, **blocks,
        )  # fmt: skip
        out = _finished(_merged(part, axes))
        return *jax.tree.map(tokens.put, out), kept

    bias = support_bias(head.shape[0], vocab=cfg.vocab, forbidden=cfg.forbidden)
    rows, columns = PartitionSpec(BATCH), PartitionSpec(VOCAB)
    in_specs = (rows, columns, rows, rows, columns, _teacher_specs(teacher))
    return _on_mesh(cfg.mesh, local, in_specs, (rows, rows, rows, KEPT))(
        hidden, head, action, action_mask, bias, teacher
    )


def _stats_backward(cfg, capacity, residuals, cotangents):
    hidden, head, action, action_mask, teacher, saved, kept = residuals
    d_logp, d_entropy, _, d_kl = cotangents
    ct = Cotangents(d_logp, d_entropy, d_kl)

    def local(offset, axes, hidden, head, action, mask, bias, teacher, saved, ct, kept):
        tokens = _Tokens.of(mask, capacity)
        student, theirs = tokens.heads(hidden, head, teacher)
        engine, blocks = _engine(cfg.tiling, student.matrix.shape[0])
        # Off the mask nothing comes in; a huge normaliser keeps exp(z - log Z) from overflowing.
        ct = jax.tree.map(lambda x: jnp.where(mask, x, 0.0), ct)
        saved = saved._replace(log_z=jnp.where(mask, saved.log_z, -_NEVER))
        saved, ct = jax.tree.map(tokens.take, (saved, ct))
        d_states, d_matrix = engine.backward(
            student, bias, tokens.take(action) - offset, theirs, saved, ct, kept,
            scale=1 / cfg.temperature, **blocks,
        )  # fmt: skip
        if axes:
            d_states = jax.lax.psum(d_states, VOCAB)
            d_matrix = jax.lax.psum(d_matrix, BATCH)
        return tokens.put(d_states).astype(hidden.dtype), d_matrix.astype(head.dtype)

    bias = support_bias(head.shape[0], vocab=cfg.vocab, forbidden=cfg.forbidden)
    rows, columns = PartitionSpec(BATCH), PartitionSpec(VOCAB)
    in_specs = (rows, columns, rows, rows, columns, _teacher_specs(teacher), rows, rows, KEPT)
    d_hidden, d_head = _on_mesh(cfg.mesh, local, in_specs, (rows, columns))(
        hidden, head, action, action_mask, bias, teacher, saved, ct, kept
    )
    return d_hidden, d_head, None, None, None


_stats.defvjp(_stats_forward, _stats_backward)


def _finished(part: Partial) -> tuple[Array, Array | None, Saved]:
    """Per token: log p(a), log q(a), and what the backward pass needs."""
    log_mass = jnp.log(part.mass)
    log_z = part.top + log_mass
    entropy = log_mass - part.heat / part.mass
    if part.t_top is None:
        return part.picked - log_z, None, Saved(log_z=log_z, entropy=entropy)
    t_log_mass = jnp.log(part.t_mass)
    t_log_z = part.t_top + t_log_mass
    kl = part.cross / part.mass - log_mass + t_log_mass
    saved = Saved(log_z=log_z, entropy=entropy, t_log_z=t_log_z, kl=kl)
    return part.picked - log_z, part.t_picked - t_log_z, saved


def tile_of(tiling: Tiling, vocab: int, platform: str) -> tuple[str, int, int]:
    """The backend on a platform ("cpu", "gpu", "tpu"), and the tokens and rows of its tiles."""
    backend = tiling.backend
    if backend == "auto":
        backend = {"gpu": "rows", "tpu": "pallas"}.get(platform, "tiles")
    token_block, vocab_block = {
        "tiles": (1024, 608),
        "rows": (2048, vocab),
        "pallas": (512, 512),
    }[backend]
    return (
        backend,
        tiling.token_block or token_block,
        min(tiling.vocab_block or vocab_block, vocab),
    )


def _engine(tiling: Tiling, vocab: int) -> tuple[ModuleType, dict[str, int]]:
    """The module that computes a device's rows, and its tile sizes."""
    backend, token_block, vocab_block = tile_of(tiling, vocab, jax.default_backend())
    blocks = {"token_block": token_block, "vocab_block": vocab_block}
    return (head_pallas if backend == "pallas" else head_tiles), blocks


# ------------------------------------------------------------------- tokens and devices


class _Tokens(NamedTuple):
    """The action tokens of a device's rows, gathered into a fixed number of places."""

    mask: Bool[Array, "N R"]
    place: Int[Array, "C"] | None  # flat position of each, one past the end where unused
    overflow: Bool[Array, ""]

    @classmethod
    def of(cls, mask: Bool[Array, "N R"], capacity: int | None) -> "_Tokens":
        if capacity is None or capacity >= mask.size:
            return cls(mask, None, jnp.zeros((), bool))
        place = jnp.flatnonzero(mask, size=capacity, fill_value=mask.size)
        return cls(mask, place, jnp.sum(mask) > capacity)

    def take(self, x: Array) -> Array:
        """[N, R, ...] -> [C, ...]; zeros where unused."""
        flat = x.reshape(-1, *x.shape[2:])
        return flat if self.place is None else flat.at[self.place].get(mode="fill", fill_value=0)

    def put(self, x: Array) -> Array:
        """[C, ...] -> [N, R, ...]; zeros off the mask, NaN on it after an overflow."""
        flat = x
        if self.place is not None:
            flat = jnp.zeros((self.mask.size, *x.shape[1:]), x.dtype)
            flat = flat.at[self.place].set(x, mode="drop")
        mask = self.mask.reshape(*self.mask.shape, *(1,) * (x.ndim - 1))
        value = jnp.where(self.overflow, jnp.nan, flat.reshape(*self.mask.shape, *x.shape[1:]))
        return jnp.where(mask, value, 0.0).astype(x.dtype)

    def heads(self, hidden: Array, head: Array, teacher: Teacher | None) -> tuple:
        """Student's and teacher's heads for the gathered tokens."""
        ours = Head(self.take(hidden), head)
        return ours, None if teacher is None else Head(self.take(teacher.hidden), teacher.head)


def _teacher_specs(teacher: Teacher | None) -> Any:
    return None if teacher is None else Teacher(PartitionSpec(BATCH), PartitionSpec(VOCAB))


def _merged(part: Partial, sharded: bool) -> Partial:
    if not sharded:
        return part
    largest = functools.partial(jax.lax.pmax, axis_name=VOCAB)
    total = functools.partial(jax.lax.psum, axis_name=VOCAB)
    return head_tiles.merge(part, largest=largest, total=total)


def _on_mesh(mesh: Mesh | None, local: Callable, in_specs: Any, out_specs: Any) -> Callable:
    """`local(offset, sharded, *args)` on every device's part, or on everything without a mesh.

    `offset` is the number of the device's first vocabulary row.
    """
    if mesh is None or mesh.size == 1:
        return functools.partial(local, 0, False)

    def one_device(hidden, head, *rest):
        offset = jax.lax.axis_index(VOCAB) * head.shape[0]
        return local(offset, True, hidden, head, *rest)

    return jax.shard_map(
        one_device, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
