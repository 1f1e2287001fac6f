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
from atod_jax.core.head_tiles import Cotangents, Factors, Head, Kept, Partial, Saved, TeacherSaved
from atod_jax.options.field import at_least, check, one_of, option
from atod_jax.types import BATCH_AXES, TENSOR_AXIS, TokenStats

BACKENDS = ("auto", "tiles", "rows", "pallas")
ROWS, VOCAB = PartitionSpec(BATCH_AXES), PartitionSpec(TENSOR_AXIS)  # how arrays are split
KEPT = PartitionSpec(TENSOR_AXIS, BATCH_AXES)  # every device keeps logits of its own tiles
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
      cfg: policy and tiling.
      capacity: action tokens that a device has memory for; see `capacity_of`. None: all N * R
        positions. More tokens than that make every result NaN: an overflow cannot go unnoticed.
      teacher: its logits are its states times its own matrix, at the same temperature.

    Raises:
      ValueError: `capacity` below 1, or the two heads differ in their number of rows.
    """
    if capacity is not None and capacity < 1:
        raise ValueError(f"capacity={capacity}: give at least 1 token")
    if teacher is not None and teacher.matrix.shape[0] != head.shape[0]:
        raise ValueError(
            f"the teacher's head has {teacher.matrix.shape[0]} rows, the student's "
            f"{head.shape[0]}: an exact KL compares the same ids; pad the smaller and set vocab to "
            "the shared ids"
        )
    bias = support_bias(head.shape[0], vocab=cfg.vocab, forbidden=cfg.forbidden)
    teacher = jax.lax.stop_gradient(teacher)
    return _stats(cfg, capacity, _Inputs(hidden, head, action, action_mask, bias, teacher))


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
    most = micro_rows // shards * width
    return next(c for share in CAPACITIES if (c := math.ceil(most * share)) >= tokens.max())


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


class _Inputs(NamedTuple):
    """What the statistics are a function of."""

    hidden: Any
    matrix: Any
    action: Any
    mask: Any
    bias: Any
    teacher: Any

    @property
    def specs(self) -> "_Inputs":
        """How devices split them."""
        teacher: Any = self.teacher and self.teacher._replace(states=ROWS, matrix=VOCAB)
        return _Inputs(ROWS, VOCAB, ROWS, ROWS, VOCAB, teacher)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _stats(cfg: HeadConfig, capacity: int | None, inputs: _Inputs) -> TokenStats:
    return _statistics(cfg, capacity, inputs, keep_bytes=0)[0]


def _stats_forward(cfg: HeadConfig, capacity: int | None, inputs: _Inputs) -> tuple:
    keep_bytes = round(cfg.tiling.keep_megabytes * 1e6)
    stats, saved, kept = _statistics(cfg, capacity, inputs, keep_bytes=keep_bytes)
    return stats, (inputs, saved, kept)


def _statistics(
    cfg: HeadConfig, capacity: int | None, inputs: _Inputs, *, keep_bytes: int
) -> tuple[TokenStats, Saved, Kept]:
    """Per token the statistics and what is saved; and the logits that were kept."""

    def local(offset: Any, sharded: bool, inputs: _Inputs) -> tuple[TokenStats, Saved, Kept]:
        tokens = _Tokens.of(inputs.mask, capacity)
        engine, options = _engine(cfg, inputs.matrix.shape[0])
        part, kept = engine.forward(tokens.head(inputs, offset), keep_bytes=keep_bytes, **options)
        stats, saved = _finished(_merged(part, sharded))
        return jax.tree.map(tokens.put, stats), jax.tree.map(tokens.put, saved), kept

    on_mesh = _on_mesh(cfg.mesh, local, (inputs.specs,), (ROWS, ROWS, KEPT))
    return on_mesh(inputs)


def _stats_backward(
    cfg: HeadConfig, capacity: int | None, residuals: tuple, cotangents: TokenStats
) -> tuple[_Inputs]:
    inputs, saved, kept = residuals
    ct = Cotangents(cotangents.logp, cotangents.entropy, cotangents.reverse_kl)

    def local(
        offset: Any, sharded: bool, inputs: _Inputs, saved: Saved, ct: Cotangents, kept: Kept
    ) -> tuple[Array, Array]:
        tokens = _Tokens.of(inputs.mask, capacity)
        engine, options = _engine(cfg, inputs.matrix.shape[0])
        # Off the mask nothing comes in; a huge normaliser keeps exp(z - log Z) from overflowing.
        ct = jax.tree.map(lambda x: jnp.where(inputs.mask, x, 0.0), ct)
        saved = saved._replace(log_z=jnp.where(inputs.mask, saved.log_z, -_NEVER))
        saved, ct = jax.tree.map(tokens.take, (saved, ct))
        d_states, d_matrix = engine.backward(
            tokens.head(inputs, offset), kept, saved=saved, ct=ct, **options
        )
        if sharded:
            d_states = jax.lax.psum(d_states, TENSOR_AXIS)
            d_matrix = jax.lax.psum(d_matrix, BATCH_AXES)
        d_hidden = tokens.put(d_states).astype(inputs.hidden.dtype)
        return d_hidden, d_matrix.astype(inputs.matrix.dtype)

    on_mesh = _on_mesh(cfg.mesh, local, (inputs.specs, ROWS, ROWS, KEPT), (ROWS, VOCAB))
    d_hidden, d_matrix = on_mesh(inputs, saved, ct, kept)
    return (_Inputs(d_hidden, d_matrix, None, None, None, None),)


_stats.defvjp(_stats_forward, _stats_backward)


def _finished(part: Partial) -> tuple[TokenStats, Saved]:
    """Per token the statistics, and what the backward pass needs."""
    log_sum = jnp.log(part.exp_sum)
    log_z = part.top + log_sum
    entropy = log_sum - part.weighted_sum / part.exp_sum
    stats = TokenStats(logp=part.action_logit - log_z, entropy=entropy)
    if part.teacher is None:
        return stats, Saved(log_z=log_z, entropy=entropy)
    teacher_log_sum = jnp.log(part.teacher.exp_sum)
    teacher_log_z = part.teacher.top + teacher_log_sum
    kl = part.teacher.cross / part.exp_sum - log_sum + teacher_log_sum
    teacher_logp = part.teacher.action_logit - teacher_log_z
    stats = stats.replace(teacher_logp=teacher_logp, reverse_kl=kl)
    return stats, Saved(log_z=log_z, entropy=entropy, teacher=TeacherSaved(teacher_log_z, kl))


def tile_of(tiling: Tiling, vocab: int, *, platform: str) -> tuple[str, int, int]:
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


def _engine(cfg: HeadConfig, vocab: int) -> tuple[ModuleType, dict[str, Any]]:
    """The module that computes a device's rows, and its options."""
    backend, token_block, vocab_block = tile_of(cfg.tiling, vocab, platform=jax.default_backend())
    blocks = {"token_block": token_block, "vocab_block": vocab_block}
    module = head_pallas if backend == "pallas" else head_tiles
    return module, {"scale": 1 / cfg.temperature, **blocks}


# ------------------------------------------------------------------- tokens and devices


class _Tokens(NamedTuple):
    """The action tokens of a device's rows, gathered into `capacity` positions."""

    mask: Bool[Array, "N R"]
    position: Int[Array, "C"] | None  # flat position of each, one past the end where unused
    overflow: Bool[Array, ""]

    @classmethod
    def of(cls, mask: Bool[Array, "N R"], capacity: int | None) -> "_Tokens":
        if capacity is None or capacity >= mask.size:
            return cls(mask, None, jnp.zeros((), bool))
        position = jnp.flatnonzero(mask, size=capacity, fill_value=mask.size)
        return cls(mask, position, jnp.sum(mask) > capacity)

    def take(self, x: Array) -> Array:
        """[N, R, ...] -> [C, ...]; zeros where unused."""
        flat = x.reshape(-1, *x.shape[2:])
        if self.position is None:
            return flat
        return flat.at[self.position].get(mode="fill", fill_value=0)

    def put(self, x: Array) -> Array:
        """[C, ...] -> [N, R, ...]; zeros off the mask, NaN on it after an overflow."""
        flat = x
        if self.position is not None:
            flat = jnp.zeros((self.mask.size, *x.shape[1:]), x.dtype)
            flat = flat.at[self.position].set(x, mode="drop")
        mask = self.mask.reshape(*self.mask.shape, *(1,) * (x.ndim - 1))
        value = jnp.where(self.overflow, jnp.nan, flat.reshape(*self.mask.shape, *x.shape[1:]))
        return jnp.where(mask, value, 0.0).astype(x.dtype)

    def head(self, inputs: _Inputs, offset: Any) -> Head:
        """The head of this device, for the gathered tokens."""
        teacher = inputs.teacher
        return Head(
            student=Factors(self.take(inputs.hidden), inputs.matrix),
            teacher=teacher and Factors(self.take(teacher.states), teacher.matrix),
            bias=inputs.bias,
            action=self.take(inputs.action) - offset,
        )


def _merged(part: Partial, sharded: bool) -> Partial:
    if not sharded:
        return part
    largest = functools.partial(jax.lax.pmax, axis_name=TENSOR_AXIS)
    total = functools.partial(jax.lax.psum, axis_name=TENSOR_AXIS)
    return head_tiles.merge(part, largest=largest, total=total)


def _on_mesh(
    mesh: Mesh | None, local: Callable[..., Any], in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """`local(offset, sharded, inputs, *more)` on every device's part, or on everything without a
    mesh.

    `offset` is the number of the device's first vocabulary row.
    """
    if mesh is None or mesh.size == 1:
        return functools.partial(local, 0, False)

    def one_device(inputs: _Inputs, *more: Any) -> Any:
        offset = jax.lax.axis_index(TENSOR_AXIS) * inputs.matrix.shape[0]
        return local(offset, True, inputs, *more)

    return jax.shard_map(
        one_device, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
