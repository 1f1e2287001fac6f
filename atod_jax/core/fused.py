"""The vocabulary head: log-probability, entropy and exact teacher KL of sampled tokens.

With a vocabulary of 150 k the logits of one batch are larger than the model, so they exist for one
block of tokens at a time. `head_loss` takes the objective along: a block's gradients are made while
its logits are there, three matrix products in all, where a loss of finished statistics has to
compute the logits a second time. Only tokens that carry loss reach the head (`capacity`), and with
the head split over the `tensor` axis every device looks at its own rows and what they say is
merged. The naive form of the same numbers lives in the tests as the oracle.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from atod_jax.core.logits import (
    LOWEST,
    Logits,
    Partial,
    logit_gradient,
    merge_devices,
    partial,
    partial_in_one_sweep,
    stats_of,
)
from atod_jax.types import BATCH_AXES, TENSOR_AXIS, TokenStats

ROWS, VOCAB = PartitionSpec(BATCH_AXES), PartitionSpec(TENSOR_AXIS)  # how arrays are split

# Of statistics and streams of one row of tokens: a loss, and what is summed beside it.
PerToken = Callable[[TokenStats, Any], tuple[Float[Array, ""], Any]]

# Float32 logits of a block. Large ones keep an accelerator's matrix units busy and add seldom to
# the head's gradient; small ones stay in the cache of a CPU.
_BLOCK_BYTES = {"cpu": 2**23, "gpu": 5 * 2**28, "tpu": 2**28}  # at most, where it can be
_FEWEST_TOKENS = 256


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """The policy that is scored, and how. Hashable, so it can be static under jit."""

    temperature: float = 1.0  # of the policy
    vocab: int = 0  # ids the policy can produce are below this; 0 = every row of the head
    forbidden: tuple[int, ...] = ()  # ids it cannot produce, e.g. padding
    mesh: Mesh | None = None  # rows over data and fsdp, vocabulary over tensor
    block: int = 0  # tokens whose logits exist at a time; 0 = `block_tokens`

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
    inputs = _Inputs.of(
        hidden, head, action=action, mask=action_mask, teacher=teacher, cfg=cfg, capacity=capacity
    )
    return _stats(cfg, capacity, inputs)


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
    inputs = _Inputs.of(
        hidden, head, action=action, mask=action_mask, teacher=teacher, cfg=cfg, capacity=capacity
    )
    return _loss(cfg, capacity, per_token, inputs, streams)


def support_bias(rows: int, *, vocab: int, forbidden: tuple[int, ...]) -> Float[Array, "V"]:
    """0 on ids the policy can produce, very negative on the others; see `HeadConfig`."""
    ids = jnp.arange(rows)
    outside = functools.reduce(
        jnp.logical_or, [ids == f for f in forbidden], ids >= (vocab or rows)
    )
    return jnp.where(outside, LOWEST, 0.0)


def mask_logits(
    logits: Float[Array, "T V"], *, vocab: int = 0, forbidden: tuple[int, ...] = ()
) -> Float[Array, "T V"]:
    """The logits over the support; sampler and scorer share it, so they agree."""
    return logits + support_bias(logits.shape[-1], vocab=vocab, forbidden=forbidden)[None]


def block_tokens(rows: int, *, platform: str) -> int:
    """Tokens whose logits exist at a time, for `rows` vocabulary rows on a device of a platform."""
    return max(_FEWEST_TOKENS, 2 ** int(math.log2(max(_BLOCK_BYTES[platform] / (4 * rows), 1))))


# ------------------------------------------------------------------- forward and backward


class _Inputs(NamedTuple):
    """What the statistics are a function of."""

    hidden: Any
    matrix: Any
    action: Any
    mask: Any
    bias: Any
    teacher: Any

    @classmethod
    def of(cls, hidden, matrix, *, action, mask, teacher, cfg, capacity) -> "_Inputs":
        if capacity is not None and capacity < 1:
            raise ValueError(f"capacity={capacity}: give at least 1 token")
        if teacher is not None and teacher.matrix.shape[0] != matrix.shape[0]:
            raise ValueError(
                f"the teacher's head has {teacher.matrix.shape[0]} rows, the student's "
                f"{matrix.shape[0]}: an exact KL compares the same ids; pad the smaller and set "
                "vocab to the shared ids"
            )
        bias = support_bias(matrix.shape[0], vocab=cfg.vocab, forbidden=cfg.forbidden)
        return cls(hidden, matrix, action, mask, bias, jax.lax.stop_gradient(teacher))

    @property
    def specs(self) -> "_Inputs":
        """How devices split them."""
        teacher: Any = self.teacher and TeacherHead(ROWS, VOCAB)  # type: ignore
        return _Inputs(ROWS, VOCAB, ROWS, ROWS, VOCAB, teacher)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _stats(cfg: HeadConfig, capacity: int | None, inputs: _Inputs) -> TokenStats:
    def local(offset: Any, sharded: bool, inputs: _Inputs) -> TokenStats:
        tokens, rows = _Tokens.of(inputs, capacity, cfg), _Rows.of(inputs, offset, sharded)
        stats = jax.lax.map(lambda x: stats_of(rows.look(x, cfg)[1]), tokens.cut(_read(inputs)))
        return jax.tree.map(tokens.put, stats)

    return _on_mesh(cfg.mesh, local, (inputs.specs,), ROWS)(inputs)


def _stats_backward(
    cfg: HeadConfig, capacity: int | None, inputs: _Inputs, ct: TokenStats
) -> tuple[_Inputs]:
    """Makes the logits once more; `head_loss`, which knows the objective, need not."""

    def product(stats: TokenStats, ct: TokenStats) -> tuple[Array, None]:
        terms = jax.tree.leaves(jax.tree.map(jnp.vdot, stats, ct))
        return functools.reduce(jnp.add, terms), None

    return (_as_inputs(_with_gradients(cfg, capacity, product, inputs, ct)[1]),)


_stats.defvjp(lambda *args: (_stats(*args), args[-1]), _stats_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _loss(
    cfg: HeadConfig, capacity: int | None, per_token: PerToken, inputs: _Inputs, streams: Any
) -> tuple[Array, Any]:
    return _with_gradients(cfg, capacity, per_token, inputs, streams)[0]


def _loss_backward(*args: Any) -> tuple[_Inputs, None]:
    """The gradients are there; what is said beside the loss has none."""
    gradients, (ct, _) = args[-2:]
    return _as_inputs(jax.tree.map(lambda x: (ct * x).astype(x.dtype), gradients)), None


def _as_inputs(gradients: tuple[Array, Array]) -> _Inputs:
    return _Inputs(*gradients, None, None, None, None)


def _with_gradients(
    cfg: HeadConfig, capacity: int | None, per_token: PerToken, inputs: _Inputs, streams: Any
) -> tuple[tuple[Array, Any], tuple[Array, Array]]:
    """What `head_loss` returns, and the gradients of the loss for hidden states and matrix."""

    def local(offset: Any, sharded: bool, inputs: _Inputs, streams: Any) -> tuple[Any, Any]:
        tokens, rows = _Tokens.of(inputs, capacity, cfg), _Rows.of(inputs, offset, sharded)

        def block(d_matrix: Array, both: tuple[_Block, Any]) -> tuple[Array, Any]:
            x, streams = both
            logits, part = rows.look(x, cfg)

            def loss(stats: TokenStats) -> tuple[Array, Any]:
                masked = jax.tree.map(lambda s: jnp.where(x.mask, s, 0.0), stats)
                return per_token(*jax.tree.map(lambda s: s[None], (masked, streams)))

            stats = stats_of(part)
            out, ct = jax.value_and_grad(loss, has_aux=True)(stats)
            dz = logit_gradient(logits, part, stats=stats, ct=ct) / cfg.temperature
            dz = dz.astype(rows.matrix.dtype)
            d_states = jnp.dot(dz, rows.matrix, preferred_element_type=jnp.float32)
            d_matrix += jnp.einsum("tv,td->vd", dz, x.states, preferred_element_type=jnp.float32)
            if sharded:
                d_states = jax.lax.psum(d_states, TENSOR_AXIS)
            return d_matrix, (out, d_states.astype(x.states.dtype))

        blocks = tokens.cut((_read(inputs), streams))
        d_matrix = jnp.full(rows.matrix.shape, tokens.zero)
        d_matrix, (out, d_states) = jax.lax.scan(block, d_matrix, blocks)
        out = jax.tree.map(lambda x: tokens.zero + jnp.sum(x, axis=0), out)
        if sharded:
            out, d_matrix = jax.lax.psum((out, d_matrix), BATCH_AXES)
        return out, (tokens.put(d_states), d_matrix.astype(rows.matrix.dtype))

    specs = (inputs.specs, ROWS), (PartitionSpec(), (ROWS, VOCAB))
    return _on_mesh(cfg.mesh, local, *specs)(inputs, streams)


_loss.defvjp(_with_gradients, _loss_backward)


# ------------------------------------------------------------------- blocks, tokens, devices


class _Block(NamedTuple):
    """What the head reads of some tokens."""

    action: Any
    mask: Any
    states: Any
    teacher: Any


def _read(inputs: _Inputs) -> _Block:
    teacher = inputs.teacher and inputs.teacher.states
    return _Block(inputs.action, inputs.mask, inputs.hidden, teacher)


class _Rows(NamedTuple):
    """The vocabulary rows of one device."""

    matrix: Float[Array, "V D"]
    teacher: Float[Array, "V E"] | None
    bias: Float[Array, "V"]
    first: Any  # number of the first of them
    sharded: bool  # others are on other devices

    @classmethod
    def of(cls, inputs: _Inputs, first: Any, sharded: bool) -> "_Rows":
        teacher = inputs.teacher and inputs.teacher.matrix
        return cls(inputs.matrix, teacher, inputs.bias, first, sharded)

    def look(self, x: _Block, cfg: HeadConfig) -> tuple[Logits, Partial]:
        """The logits of a block over these rows, and what all rows say of its tokens."""

        def product(states: Array, matrix: Array) -> Array:
            z = jnp.einsum("td,vd->tv", states, matrix, preferred_element_type=jnp.float32)
            return z / cfg.temperature + self.bias[None]

        z = product(x.states, self.matrix)
        y = None if self.teacher is None else product(x.teacher, self.teacher)
        number = self.first + jnp.arange(self.matrix.shape[0])
        logits = Logits(z, y, x.action[:, None] == number[None])
        part = (partial if jax.default_backend() == "cpu" else partial_in_one_sweep)(logits)
        return logits, merge_devices(part, TENSOR_AXIS) if self.sharded else part


class _Tokens(NamedTuple):
    """The action tokens of a device's rows, gathered into `capacity` positions, in blocks."""

    mask: Bool[Array, "N R"]
    position: Int[Array, "C"] | None  # flat position of each, one past the end where unused
    zero: Any  # NaN after an overflow
    blocks: tuple[int, int]  # of so many tokens

    @classmethod
    def of(cls, inputs: _Inputs, capacity: int | None, cfg: HeadConfig) -> "_Tokens":
        mask, count = inputs.mask, min(capacity or inputs.mask.size, inputs.mask.size)
        block = cfg.block or block_tokens(len(inputs.matrix), platform=jax.default_backend())
        blocks = max(1, -(-count // block))
        size = min(block, 8 * -(-count // (8 * blocks)))  # matrix units like multiples of 8
        if count == mask.size:
            return cls(mask, None, 0.0, (blocks, size))
        position = jnp.flatnonzero(mask, size=count, fill_value=mask.size)
        zero = jnp.where(jnp.sum(mask) > count, jnp.nan, 0.0)
        return cls(mask, position, zero, (blocks, size))

    def cut(self, tree: Any) -> Any:
        """[N, R, ...] -> [blocks, t, ...]; zeros where unused."""

        def one(x: Array) -> Array:
            x = x.reshape(-1, *x.shape[2:])
            if self.position is not None:
                x = x.at[self.position].get(mode="fill", fill_value=0)
            unused = math.prod(self.blocks) - x.shape[0]
            x = jnp.pad(x, [(0, unused)] + [(0, 0)] * (x.ndim - 1))
            return x.reshape(*self.blocks, *x.shape[1:])

        return jax.tree.map(one, tree)

    def put(self, x: Array) -> Array:
        """[blocks, t, ...] -> [N, R, ...]; zeros off the mask, NaN on it after an overflow."""
        x = x.reshape(-1, *x.shape[2:])
        if self.position is None:
            x = x[: self.mask.size]
        else:
            places = jnp.zeros((self.mask.size, *x.shape[1:]), x.dtype)
            x = places.at[self.position].set(x[: len(self.position)], mode="drop")
        mask = self.mask.reshape(*self.mask.shape, *(1,) * (x.ndim - 1))
        x = x.reshape(*self.mask.shape, *x.shape[1:]) + self.zero
        return jnp.where(mask, x, 0.0).astype(x.dtype)


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
