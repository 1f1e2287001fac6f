"""The optimiser: clipped AdamW, with a learning rate that is a function of the iteration."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Defaults are the released runs' (method notes, section 9) unless a config overrides them."""

    lr: float = 1e-6
    schedule: str = "constant"  # or "cosine": to zero over the run
    warmup_steps: int = 0  # iterations, linear from 0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01  # on all parameters
    clip_norm: float = 1.0


def make_optimizer(cfg: OptimConfig) -> optax.GradientTransformation:
    """Clipped AdamW direction, not yet scaled by the learning rate."""
    return optax.chain(
        optax.clip_by_global_norm(cfg.clip_norm),
        optax.scale_by_adam(b1=cfg.b1, b2=cfg.b2, eps=cfg.eps),
        optax.add_decayed_weights(cfg.weight_decay),
    )


def make_learning_rate(cfg: OptimConfig, total_steps: int) -> Callable[[jax.Array], jax.Array]:
    """Iteration (0-based) -> learning rate.

    It follows the iteration, not the optimiser step, so the number of minibatches a step happens to
    have cannot bend the schedule.
    """

    def learning_rate(step: jax.Array) -> jax.Array:
        warm = jnp.minimum(step / max(cfg.warmup_steps, 1), 1.0) if cfg.warmup_steps else 1.0
        if cfg.schedule == "constant":
            return jnp.asarray(cfg.lr * warm, jnp.float32)
        done = (step - cfg.warmup_steps) / max(total_steps - cfg.warmup_steps, 1)
        return jnp.asarray(cfg.lr * warm * 0.5 * (1 + jnp.cos(math.pi * jnp.clip(done, 0, 1))))

    return learning_rate
