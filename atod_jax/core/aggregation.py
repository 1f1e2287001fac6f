"""How token losses become one number: each token's share of the loss, from the full batch.

Shares are computed before the batch is cut, so the size of a micro-batch, padding and the layout of
devices cannot change what a token weighs. The loss is the sum of share * token loss.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from atod_jax.core import masked

MODES = (
    "token-mean",
    "seq-mean-token-mean",
    "seq-mean-token-sum",
    "seq-mean-token-sum-norm",
    "trajectory-mean-token-mean",
)


def token_shares(
    action_mask: Bool[Array, "N R"], traj: Int[Array, "N"], *, num_traj: int, mode: str
) -> Float[Array, "N R"]:
    """Share of every action token in the loss; 0 off the mask and on padding rows.

    token-mean                   1 / tokens of the batch
    seq-mean-token-mean          1 / (tokens of the row * rows)
    seq-mean-token-sum           1 / rows
    seq-mean-token-sum-norm      1 / R, a constant divisor
    trajectory-mean-token-mean   1 / (tokens of the trajectory * trajectories), the paper's 1/|tau|

    "seq" is a row, that is a turn; rows without tokens count as rows.

    Args:
      action_mask: True where the student sampled the token.
      traj: trajectory of each row, `num_traj` on padding rows.
      num_traj: trajectories in the batch.
      mode: one of the above.

    Raises:
      ValueError: any other mode.
    """
    if mode not in MODES:
        raise ValueError(f"aggregation={mode!r}: choose from {', '.join(MODES)}")
    real = traj < num_traj
    mask = action_mask & real[:, None]
    length = jnp.sum(mask, axis=1, dtype=jnp.float32)
    rows = jnp.maximum(jnp.sum(real, dtype=jnp.float32), 1.0)
    if mode == "token-mean":
        per_row = jnp.broadcast_to(1.0 / jnp.maximum(jnp.sum(length), 1.0), length.shape)
    elif mode == "seq-mean-token-mean":
        per_row = 1.0 / (jnp.maximum(length, 1.0) * rows)
    elif mode == "seq-mean-token-sum":
        per_row = jnp.broadcast_to(1.0 / rows, length.shape)
    elif mode == "seq-mean-token-sum-norm":
        per_row = jnp.full(length.shape, 1.0 / action_mask.shape[1])
    else:
        tokens = masked.segment_sum(length, traj, num=num_traj)
        present = jnp.maximum(jnp.sum(tokens > 0, dtype=jnp.float32), 1.0)
        per_row = masked.spread(1.0 / (jnp.maximum(tokens, 1.0) * present), traj, fill=0.0)
    return jnp.where(mask, per_row[:, None], 0.0)
