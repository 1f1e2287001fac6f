"""The optimiser: clipped AdamW, with a learning rate that is a function of the iteration."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from atod_jax.options.field import above, at_least, check, from_below, one_of, option

SCHEDULES = ("constant", "cosine")


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Options of the optimiser; defaults are the released runs' (method notes, section 9)."""

    lr: float = option(1e-6, "learning rate per update, after the warm-up", at_least(0))
    schedule: str = option(
        "constant", "constant | cosine (to zero over the run)", one_of(*SCHEDULES)
    )
    warmup_steps: int = option(
        0, "iterations in which the rate rises linearly from 0", at_least(0, "0 = no warm-up")
    )
    b1: float = option(0.9, "decay of the mean of gradients", from_below(0, 1))
    b2: float = option(0.999, "decay of the mean of squared gradients", from_below(0, 1))
    eps: float = option(1e-8, "added to the root of the second", above(0))
    weight_decay: float = option(0.01, "on all parameters that train", at_least(0))
    clip_norm: float = option(
        1.0, "largest global norm of a gradient", at_least(0, "0 turns clipping off")
    )

    def __post_init__(self):
        check(self)


def make_optimizer(cfg: OptimConfig) -> optax.GradientTransformation:
    """Clipped AdamW direction, not yet scaled by the learning rate."""
    return optax.chain(
        optax.clip_by_global_norm(cfg.clip_norm) if cfg.clip_norm else optax.identity(),
        optax.scale_by_adam(b1=cfg.b1, b2=cfg.b2, eps=cfg.eps),
        optax.add_decayed_weights(cfg.weight_decay),
    )


def make_learning_rate(cfg: OptimConfig, total_steps: int) -> Callable[[jax.Array], jax.Array]:
    """Iteration (0-based) -> learning rate.

    It follows the iteration, not the optimiser step, so the number of minibatches a step happens to
    have cannot bend the schedule.
    """
    if cfg.schedule == "cosine":
        schedule = optax.warmup_cosine_decay_schedule(
            init_value=0.0,
            peak_value=cfg.lr,
            warmup_steps=cfg.warmup_steps,
            decay_steps=max(total_steps, cfg.warmup_steps + 1),
        )
    else:
        # not warmup_constant_schedule: without a warm-up that one stays at its first value
        warmup = optax.linear_schedule(0.0, cfg.lr, cfg.warmup_steps)
        constant = optax.constant_schedule(cfg.lr)
        schedule = optax.join_schedules([warmup, constant], [cfg.warmup_steps])
    return lambda step: jnp.asarray(schedule(step), jnp.float32)
