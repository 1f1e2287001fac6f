"""A toy model, minibatches for it, and the objective of an update written out."""

import jax
import jax.numpy as jnp
import numpy as np

from atod_jax.core.fused import HeadConfig
from atod_jax.core.losses import LossConfig
from atod_jax.device.learner import Piece
from atod_jax.device.scoring import ScoreConfig
from atod_jax.models import ModelConfig, build
from atod_jax.types import Rows, Signal

V, N, P, R = 23, 16, 7, 4
CONFIG = ModelConfig(
    vocab_size=V, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
    intermediate_size=24, rope_theta=1e4, rms_eps=1e-6, tie_embeddings=True,
)  # fmt: skip
MODEL = build(CONFIG)
SCORE = ScoreConfig(micro_rows=4, head=HeadConfig(forbidden=(0,), block=8))


def make_batch(rows=N, padding=0, seed=0):
    rng = np.random.default_rng(seed)
    length = rng.integers(1, R + 1, rows)
    mask = np.arange(R) < length[:, None]
    batch = Rows(
        prompt=rng.integers(1, V, (rows, P)).astype(np.int32),
        prompt_length=rng.integers(1, P + 1, rows).astype(np.int32),
        action=rng.integers(1, V, (rows, R)).astype(np.int32),
        action_mask=mask,
        sampler_logp=np.zeros((rows, R), np.float32),
        traj=np.arange(rows, dtype=np.int32),
        turn=np.zeros(rows, np.int32),
        action_valid=np.ones(rows, bool),
        reward=np.zeros(rows, np.float32),
        anchor=np.zeros(rows, np.int32),
    )
    signal = Signal(
        advantage=rng.normal(size=(rows, R)).astype(np.float32),
        ce_weight=rng.uniform(size=(rows, R)).astype(np.float32),
        old_logp=rng.normal(-3, 0.3, size=(rows, R)).astype(np.float32),
        diagnostics={},
    )
    share = np.where(mask, 1 / mask.sum(), 0.0).astype(np.float32)
    if padding:
        junk_rows, junk_signal, _, _ = make_batch(padding, seed=9)
        junk_rows = junk_rows.replace(
            action_mask=jnp.zeros((padding, R), bool), prompt_length=jnp.zeros(padding, jnp.int32)
        )
        batch = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), batch, junk_rows)
        streams = {
            f: jnp.concatenate([getattr(signal, f), getattr(junk_signal, f)])
            for f in ("advantage", "ce_weight", "old_logp")
        }
        signal = signal.replace(**streams)
        share = np.concatenate([share, np.zeros((padding, R), np.float32)])
    return jax.tree.map(jnp.asarray, Piece(batch, signal, share))


def plain_loss(params, piece):
    """The objective written out over full logits of all columns."""
    (rows, signal, share, _), cfg = piece, LossConfig()
    tokens = jnp.concatenate([rows.prompt, rows.action], 1)
    valid = jnp.concatenate(
        [jnp.arange(P)[None] >= P - rows.prompt_length[:, None], rows.action_mask], 1
    )
    hidden, _ = MODEL.hidden(params, tokens, valid, tail=P + R)
    logits = jnp.einsum("nld,vd->nlv", hidden, MODEL.head(params)).at[..., 0].set(-1e30)
    logp = jnp.take_along_axis(
        jax.nn.log_softmax(logits[:, P - 1 : -1]), rows.action[..., None], 2
    )[..., 0]
    ratio, a = jnp.exp(logp - signal.old_logp), signal.advantage
    loss = jnp.maximum(-a * ratio, -a * jnp.clip(ratio, 1 - cfg.clip_low, 1 + cfg.clip_high))
    loss = jnp.where(a < 0, jnp.minimum(loss, -a * cfg.dual_clip), loss)
    return jnp.sum(share * (loss - signal.ce_weight * logp))


def assert_trees_close(a, b):
    """Equal to 1e-5 of the largest entry: float32 sums taken in another order."""
    scale = max(float(np.abs(x).max()) for x in jax.tree.leaves(b))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * scale), a, b)
