"""Golden arrays and parameters as the package's types: batches, statistics, configs.

A case may write real numbers as whole ones, and an advantage per row or per token.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from atod_jax.core import advantages, losses, schedules, tdur
from atod_jax.types import Rows, TokenStats, TurnBatch

# Parameters that are not real numbers, and arrays of whole numbers.
FLAGS = {
    "tip_mean_preserve", "opd_length_normalization", "cross_steps", "norm_by_std", "opd_only",
    "enable_tip", "enable_soft_curriculum", "enable_coef_anneal", "enable_within_turn_rtg",
}  # fmt: skip
COUNTS = {
    "tip_min_turns", "anneal_steps", "coef_anneal_steps", "global_step", "warmup_steps",
    "curriculum_warmup_steps", "max_env_steps", "micro_batch", "mini_batch", "max_turn_log",
}  # fmt: skip
IDS = {"traj_id", "group_id", "turn_step", "anchor_id", "steps", "expert_lens"}
ADVANTAGES = {"advantage", "advantages", "grpo_advantage"}


class PerRow(NamedTuple):
    """A result with one number per row, which a case lists per row or per token."""

    values: Any  # [N]
    mask: Any  # [N, R]
    fill: Any = 0.0  # off the mask

    def per_token(self):
        """[N, R]."""
        return jnp.where(self.mask, self.values[:, None], self.fill)


def numbers(params):
    """The parameters of a case in the types that the package declares."""

    def number(name, value):
        if isinstance(value, str) or value is None:
            return value
        kind = bool if name in FLAGS else int if name in COUNTS else float
        return kind(np.asarray(value).item())

    return {name: number(name, value) for name, value in params.items()}


def takes_numbers(adapter):
    """An adapter whose parameters went through `numbers`."""
    return functools.wraps(adapter)(lambda params, arrays: adapter(numbers(params), arrays))


def prepared(arrays):
    """Device inputs of a case: boolean mask, dense trajectory ids, tables per trajectory."""
    a = {k.removeprefix("in_"): v for k, v in arrays.items() if k.startswith("in_")}
    rows = len(next(iter(a.values())))
    if "mask" in a:
        a["mask"] = a["mask"] > 0
    for name in a.keys() - {"mask"}:
        whole = np.issubdtype(a[name].dtype, np.integer) or a[name].dtype == bool
        if name in IDS and not whole:
            a[name] = a[name].astype(np.int32)
        if name not in IDS and whole:
            a[name] = a[name].astype(np.float64)
        if name in ADVANTAGES and a[name].ndim == 1:
            a[name] = np.broadcast_to(a[name][:, None], a["mask"].shape)
    _, first, traj = np.unique(
        a.get("traj_id", np.arange(rows)), return_index=True, return_inverse=True
    )
    a["traj"] = traj.astype(np.int32)
    a["group"] = np.zeros(len(first), np.int32)
    if "group_id" in a:
        a["group"] = np.unique(a["group_id"], return_inverse=True)[1][first].astype(np.int32)
    if "episode_reward" in a:
        a["returns"] = a["episode_reward"][first]
    return {k: jnp.asarray(v) for k, v in a.items()}


def make_batch(a):
    """A TurnBatch from the arrays of a case; fields the case lacks are neutral."""
    mask = a["mask"]
    n, num = mask.shape[0], a["group"].shape[0]
    rows = Rows(
        action=jnp.zeros(mask.shape, jnp.int32),
        action_mask=mask,
        sampler_logp=jnp.zeros(mask.shape),
        traj=a["traj"],
        turn=a.get("turn_step", jnp.zeros(n, jnp.int32)),
        action_valid=a.get("is_action_valid", jnp.ones(n)) > 0,
        reward=a.get("step_reward", jnp.zeros(n)),
        anchor=a.get("anchor_id", jnp.zeros(n, jnp.int32)),
    )
    return TurnBatch(rows=rows, returns=a.get("returns", jnp.zeros(num)), group=a["group"])


def models(a):
    """Student and teacher statistics; the method only looks at log-probabilities."""
    zero = jnp.zeros_like(a["student_logp"])
    return tuple(TokenStats(logp=a[f"{who}_logp"], entropy=zero) for who in ("student", "teacher"))


def tdur_config(p):
    only(p["tip_eps"], 1e-8)
    return tdur.TdurConfig(
        score=p["tip_score_mode"],
        min_turns=p["tip_min_turns"],
        min_divergence=p["tip_min_divergence"],
        top_rho=p["tip_rho"],
        smoothing=p["tip_smoothing"],
        mean_preserving=p["tip_mean_preserve"],
        ratio_min=p["tip_w_min"],
        ratio_max=p["tip_w_max"],
    )


def anneal_config(p):
    return schedules.AnnealConfig(
        kappa_start=p["kl_coef"],
        kappa_end=p["kl_coef_min"],
        rho_start=p["rl_coef"],
        rho_end=p["rl_coef_max"],
        kind="linear" if p["enable_coef_anneal"] else "constant",
        steps=p["coef_anneal_steps"],
    )


def group_config(p):
    return advantages.RewardConfig(
        statistics="turns" if p["cross_steps"] else "trajectories",
        scale=p["norm_by_std"],
        invalid_penalty=p.get("invalid_action_penalty_coef", 0.0),
        eps=p.get("epsilon", p.get("grpo_epsilon")),
    )


def only(value, known):
    """A case outside what the package has is refused, never answered approximately."""
    if value != known:
        raise NotImplementedError(f"{value!r}: the package has {known!r}")


def fitted(name, got, expected, function):
    """An output cut to the entries that the case lists."""
    value = got[name]
    if isinstance(value, PerRow):
        value = value.values if expected[name].ndim == 1 else value.per_token()
    value = np.asarray(value)
    if function == "per_turn_diagnostics" and value.ndim == 1:
        return value[expected["turn"]]
    if function == "turn_segments" and value.ndim == 2:
        widest = expected[name].shape[1]
        assert np.all(value[:, widest:] == -1)
        return value[:, :widest]
    return value


def loss_config(p):
    return losses.LossConfig(
        clip_low=p["cliprange_low"],
        clip_high=p["cliprange_high"],
        dual_clip=p["clip_ratio_c"],
        aggregation=p["loss_agg_mode"],
    )
