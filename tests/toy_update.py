"""A toy model, micro-batches for it, and the objective of an update written out."""

import jax
import jax.numpy as jnp
import numpy as np

from atod_jax.core.fused import HeadConfig
from atod_jax.core.losses import LossConfig
from atod_jax.device.learner import Piece
from atod_jax.device.lines import Room
from atod_jax.models import ModelConfig, build
from atod_jax.types import Lines, Rows, Signal

V, N, P, R = 23, 16, 7, 4
CONFIG = ModelConfig(
    vocab_size=V, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
    intermediate_size=24, rope_theta=1e4, rms_eps=1e-6, tie_embeddings=True,
)  # fmt: skip
MODEL = build(CONFIG)
HEAD = HeadConfig(forbidden=(0,), block=8)
PLENTY = Room(line=4 * R, head=N * R)  # for lines of up to four rows


def lines_of(prompts, action, mask, per_line=1, columns=0):
    """Rows as lines of `per_line` rows, with junk behind the last."""
    rng = np.random.default_rng(4)
    count = mask.sum(axis=1)
    width = columns or per_line * (P + R)
    tokens = rng.integers(1, V, (len(prompts) // per_line, width)).astype(np.int32)
    for line in range(len(tokens)):
        members = range(line * per_line, (line + 1) * per_line)
        ids = [np.concatenate([prompts[n], action[n, : max(count[n] - 1, 0)]]) for n in members]
        ids = np.concatenate(ids)
        tokens[line, : len(ids)] = ids
    length = np.array([len(p) for p in prompts], np.int32)
    return Lines(tokens=tokens, prompt_length=length)


def make_batch(rows=N, padding=0, seed=0, per_line=1, order=None):
    """A piece of `rows` rows and some of padding, `per_line` to a line."""
    rng = np.random.default_rng(seed)
    length = rng.integers(1, R + 1, rows)
    mask = np.arange(R) < length[:, None]
    action = rng.integers(1, V, (rows, R)).astype(np.int32)
    prompts = [rng.integers(1, V, rng.integers(1, P + 1)) for _ in range(rows)]
    streams = {
        "advantage": rng.normal(size=(rows, R)),
        "ce_weight": rng.uniform(size=(rows, R)),
        "old_logp": rng.normal(-3, 0.3, size=(rows, R)),
    }
    streams["share"] = np.where(mask, 1 / mask.sum(), 0.0)
    keep = np.arange(rows) if order is None else np.asarray(order)
    mask, action, prompts = mask[keep], action[keep], [prompts[n] for n in keep]
    more = ((0, padding), (0, 0))
    mask, action = np.pad(mask, more), np.pad(action, more, constant_values=5)
    streams = {name: np.pad(x[keep], more).astype(np.float32) for name, x in streams.items()}
    prompts = prompts + [np.zeros(0, np.int32)] * padding
    share, total = streams.pop("share"), rows + padding
    batch = Rows(
        lines=lines_of(prompts, action, mask, per_line),
        action=action,
        action_mask=mask,
        sampler_logp=np.zeros((total, R), np.float32),
        traj=np.arange(total, dtype=np.int32),
        turn=np.zeros(total, np.int32),
        action_valid=np.ones(total, bool),
        reward=np.zeros(total, np.float32),
        anchor=np.zeros(total, np.int32),
    )
    return jax.tree.map(jnp.asarray, Piece(batch, Signal(**streams, diagnostics={}), share))


def log_probs(params, rows):
    """log p [N, R, V] of a piece with one row a line, over full logits of all columns."""
    lines, width = rows.lines, rows.lines.tokens.shape[1]
    hidden = MODEL.hidden(params, lines.tokens, jnp.full((len(lines.tokens), 1), width))
    at = jnp.maximum(lines.prompt_length[:, None] - 1 + jnp.arange(R)[None], 0)
    hidden = jnp.take_along_axis(hidden, at[..., None], axis=1)
    logits = jnp.einsum("nrd,vd->nrv", hidden, MODEL.head(params)).at[..., 0].set(-1e30)
    return jax.nn.log_softmax(logits)


def plain_loss(params, piece):
    """The objective written out; one row a line."""
    (rows, signal, share, _), cfg = piece, LossConfig()
    logp = jnp.take_along_axis(log_probs(params, rows), rows.action[..., None], 2)[..., 0]
    ratio, a = jnp.exp(logp - signal.old_logp), signal.advantage
    loss = jnp.maximum(-a * ratio, -a * jnp.clip(ratio, 1 - cfg.clip_low, 1 + cfg.clip_high))
    loss = jnp.where(a < 0, jnp.minimum(loss, -a * cfg.dual_clip), loss)
    return jnp.sum(jnp.where(rows.action_mask, share * (loss - signal.ce_weight * logp), 0.0))


def assert_trees_close(a, b):
    """Equal to 1e-5 of the largest entry: float32 sums taken in another order."""
    scale = max(float(np.abs(x).max()) for x in jax.tree.leaves(b))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * scale), a, b)
