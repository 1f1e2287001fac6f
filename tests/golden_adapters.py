"""How each function of the golden index maps to the package's public functions.

An adapter takes the parameters of a case and its prepared arrays, and returns the case's outputs
by name. It holds no formula of the method: only argument building, sums and masks.
"""

import jax
import jax.numpy as jnp
from golden_inputs import (
    PerRow,
    anneal_config,
    group_config,
    loss_config,
    make_batch,
    models,
    only,
    takes_numbers,
    tdur_config,
)
from golden_reports import by_turn, runs

from atod_jax.algorithms import atod, base, opd, opd_gated, sod, tcod
from atod_jax.algorithms.base import Step
from atod_jax.core import advantages, aggregation, losses, masked, schedules, tdur
from atod_jax.types import Signal, TokenStats


def tdur_turn_weights(p, a):
    d, h = tdur.turn_signals(a["student_logp"], a["teacher_logp"], action_mask=a["mask"])
    per_row = tdur.turn_weights(
        d,
        h,
        traj=a["traj"],
        length=jnp.sum(a["mask"], axis=1),
        num_traj=a["group"].shape[0],
        cfg=tdur_config(p),
    )
    return {"weights": PerRow(per_row, a["mask"], 1.0)}


def tdur_token_weights(p, a):
    weights = tdur.token_weights(
        a["student_logp"],
        a["teacher_logp"],
        action_mask=a["mask"],
        min_divergence=p["tip_min_divergence"],
        smoothing=p["tip_smoothing"],
        quantile=p["entropy_clip_quantile"],
    )
    return {"weights": weights}


def anneal_coefs(p, a):
    cfg = schedules.AnnealConfig(
        kappa_start=p["kl_init"],
        kappa_end=p["kl_min"],
        rho_start=p["rl_init"],
        rho_end=p["rl_max"],
        steps=p["anneal_steps"],
    )
    steps = a["steps"].astype(jnp.result_type(int))  # int32 would divide in single precision
    kappa, rho = jax.vmap(lambda s: schedules.mix(s, cfg=cfg))(steps)
    unit = schedules.AnnealConfig(rho_start=0.0, rho_end=1.0, steps=p["anneal_steps"])
    _, progress = jax.vmap(lambda s: schedules.mix(s, cfg=unit))(steps)
    return {"kappa": kappa, "rho": rho, "progress": progress}


def soft_curriculum_weights(p, a):
    cfg = schedules.CurriculumConfig(
        updates_per_turn=p["checkpoint_steps"],
        softness=p["softness"],
        bias=p["bias"],
        weight_min=p["min_weight"],
        weight_max=p["max_weight"],
        warmup=p["warmup_steps"],
    )
    weight = schedules.soft_curriculum(jnp.array(p["global_step"]), a["turn_step"], cfg=cfg)
    return {"weights": PerRow(weight, a["mask"], 1.0)}


def atod_advantage(p, a):
    """The terms of the hybrid advantage, with the reward term given."""
    mask, (student, teacher) = a["mask"], models(a)
    update = jnp.array(p["global_step"])
    gap = teacher.logp - student.logp
    if p["enable_within_turn_rtg"]:
        options = {"gamma": p["opd_gamma"], "normalise": p["opd_length_normalization"]}
        gap = advantages.return_to_go(gap, mask, **options)
    weight = jnp.ones_like(gap)
    if p["enable_tip"] and p["tip_granularity"] == "turn":
        weight = tdur_turn_weights(p, a)["weights"].per_token()
    elif p["enable_tip"]:
        quantile = p["tip_entropy_clip_quantile"]
        weight = tdur_token_weights({**p, "entropy_clip_quantile": quantile}, a)["weights"]
    if p["enable_soft_curriculum"]:
        prefix = "curriculum_"
        curriculum = {k.removeprefix(prefix): v for k, v in p.items() if k.startswith(prefix)}
        per_row = soft_curriculum_weights({**curriculum, "global_step": update}, a)["weights"]
        weight *= per_row.per_token()
    kappa, rho = schedules.mix(update, cfg=anneal_config(p))
    distill, _ = base.mixed_terms(kappa * weight * gap, None, action_mask=mask)
    return {"advantage": distill + jnp.where(mask, rho * a["grpo_advantage"], 0.0)}


def atod_pipeline(p, a):
    """Rewards, penalty, group advantage, weights and annealing: the whole of `atod.signal`."""
    kind = {"turn": "tdur", "token": "token"}[p["tip_granularity"]]
    cfg = atod.Config(
        weighting=kind if p["enable_tip"] else "uniform",
        token_signal="return_to_go" if p["enable_within_turn_rtg"] else "gap",
        rtg_gamma=p["opd_gamma"],
        rtg_normalise=p["opd_length_normalization"],
        token_quantile=p["tip_entropy_clip_quantile"],
        tdur=tdur_config(p),
        curriculum=schedules.CurriculumConfig(
            enabled=p["enable_soft_curriculum"],
            updates_per_turn=p["curriculum_checkpoint_steps"],
            softness=p["curriculum_softness"],
            bias=p["curriculum_bias"],
            weight_min=p["curriculum_min_weight"],
            weight_max=p["curriculum_max_weight"],
            warmup=p["curriculum_warmup_steps"],
        ),
        anneal=anneal_config(p),
        reward=group_config(p),
    )
    batch = make_batch(a)
    signal = atod.signal(cfg, Step(batch, *models(a), jnp.array(p["global_step"] - 1)))
    grpo = advantages.row_advantages(batch, cfg=cfg.reward)
    return {"advantage": signal.advantage, "grpo_advantage": PerRow(grpo, a["mask"])}


def grpo_outcome_advantage(p, a):
    scores = jnp.sum(a["token_level_rewards"], axis=1)
    per_row = advantages.group_relative(scores, a["traj"], group=a["group"], cfg=group_config(p))
    return {"advantage": PerRow(per_row, a["mask"])}


def invalid_action_penalty(p, a):
    """Rewards sit on the last valid token (column -1 of an empty row), one trajectory per row."""
    scores = a["token_level_scores"]
    rows, width = scores.shape
    row, traj = jnp.arange(rows), jnp.arange(rows)
    at = (jnp.sum(a["mask"], axis=1) - 1) % width
    valid, coef = a["is_action_valid"] > 0, p["coef"]
    new = advantages.row_scores(scores[row, at], traj, action_valid=valid, invalid_penalty=coef)
    return {"token_level_scores": scores.at[row, at].set(new)}


def policy_loss(p, a):
    (loss, metrics), grad = jax.value_and_grad(token_sum_loss, has_aux=True)(
        a["logp"], a["old_logp"], a["advantages"], a["mask"], cfg=loss_config(p)
    )
    names = {
        "clipfrac": "loss/clip_fraction",
        "clipfrac_lower": "loss/clip_fraction_lower",
        "ppo_kl": "loss/ppo_kl",
    }
    means = {k: metrics[v].total / metrics[v].weight for k, v in names.items()}
    return {"loss": loss, "grad_logp": grad, **means}


def policy_loss_micro_accumulated(p, a):
    """The reference's mean of micro-batch means: each micro-batch brings its own denominator."""
    micro, mini = p["micro_batch"], p["mini_batch"]
    pieces = [slice(i, i + micro) for i in range(0, a["logp"].shape[0], micro)]
    values, grads = [], []
    for piece in pieces:
        args = [a[k][piece] for k in ("logp", "old_logp", "advantages", "mask")]
        (value, _), grad = jax.value_and_grad(token_sum_loss, has_aux=True)(
            *args, cfg=loss_config(p)
        )
        values.append(value)
        grads.append(grad * (micro / mini))
    return {"grad_logp": jnp.concatenate(grads), "micro_losses": jnp.stack(values)}


def shares(mask, mode):
    """Every row of a case is its own trajectory."""
    rows = mask.shape[0]
    return aggregation.token_shares(mask, jnp.arange(rows), num_traj=rows, mode=mode)


def token_sum_loss(logp, old_logp, advantage, mask, *, cfg):
    stats = TokenStats(logp=logp, entropy=jnp.zeros_like(logp))
    signal = Signal(advantage=advantage, old_logp=old_logp, diagnostics={})
    share = shares(mask, cfg.aggregation)
    return losses.objective(stats, signal, action_mask=mask, share=share, cfg=cfg)


def sod_opd_advantage(p, a):
    """The three modes: uniform (opd), gated (opd_gated), stepwise (sod)."""
    mask, (student, teacher) = a["mask"], models(a)
    step = Step(make_batch(a), student, teacher, jnp.array(0))
    gap = p["opd_coef"] * base.log_gap(step)
    out = {}
    if p["mode"] == "gated":
        gate = {k: p[k] for k in ("gamma", "beta_min", "beta_max")}
        beta = opd_gated.gate(
            masked.row_mean(a["grpo_advantage"], mask), cfg=opd_gated.Config(**gate)
        )
        gap = beta[:, None] * gap
    elif p["mode"] == "stepwise":
        divergence, _ = tdur.turn_signals(student.logp, teacher.logp, action_mask=mask)
        weight = sod.stepwise_weights(
            divergence,
            a["traj"],
            turn=a["turn_step"],
            num_traj=a["group"].shape[0],
            delta=p["delta"],
            eps=p["epsilon"],
        )
        gap = weight[:, None] * gap
        out = {"weights": PerRow(weight, mask)}
    else:
        only(p["mode"], "uniform")
        cfg = opd.Config(coef=p["opd_coef"])
        gap = opd.signal(cfg, step).advantage
    reward = jnp.where(mask, a["grpo_advantage"], 0.0)
    return {"advantage": gap + (0.0 if p["opd_only"] else reward), **out}


def tcod_schedule(p, a):
    c, steps = int(p["checkpoint_steps"]), a["steps"]
    lengths = a["expert_lens"][None, :]
    return {
        "f2b_max_steps": tcod.horizon(steps, max_turns=p["max_env_steps"], updates_per_turn=c),
        "b2f_prefix": tcod.prefix_length(steps[:, None], length=lengths, updates_per_turn=c),
    }


def sdar_loss(p, a):
    """The gated term alone: lambda is 1 and there is no advantage."""
    mask = a["mask"]
    cfg = losses.LossConfig(gate_beta=p["gate_beta"], aggregation=p["loss_agg_mode"])

    def loss(logp):
        zero = jnp.zeros_like(logp)
        signal = Signal(
            advantage=zero,
            old_logp=logp,
            gate_weight=jnp.ones_like(logp),
            teacher_logp=a["teacher_logp"],
            diagnostics={},
        )
        stats = TokenStats(logp=logp, entropy=zero)
        share = shares(mask, cfg.aggregation)
        return losses.objective(stats, signal, action_mask=mask, share=share, cfg=cfg)[0]

    value, grad = jax.value_and_grad(loss)(a["student_logp"])
    _, gate = losses.gated_gap(a["student_logp"], a["teacher_logp"], beta=p["gate_beta"])
    return {"loss": value, "gate": gate, "grad_student_logp": grad}


def gigpo_advantage(p, a):
    returns = advantages.step_returns(
        a["step_reward"], a["traj"], turn=a["turn_step"], gamma=p["gamma"]
    )
    valid, coef = a["is_action_valid"] > 0, p["invalid_action_penalty_coef"]
    own = jnp.arange(returns.shape[0])
    penalised = advantages.row_scores(returns, own, action_valid=valid, invalid_penalty=coef)
    scale = {"mean_norm": False, "mean_std_norm": True}[p["mode"]]
    per_row = advantages.gigpo(
        jnp.sum(a["token_level_rewards"], axis=1),
        penalised,
        traj=a["traj"],
        group=a["group"],
        anchor=a["anchor_id"],
        cfg=advantages.RewardConfig(
            scale=scale, eps=p["epsilon"], gigpo_weight=p["step_advantage_w"]
        ),
    )
    return {
        "step_return": returns,
        "step_reward_penalised": penalised,
        "advantage": PerRow(per_row, a["mask"]),
    }


def turn_segments(p, a):
    start, end, count = runs(a["mask"], limit=a["mask"].shape[1])
    return {"start": start, "end": end, "count": count}


def per_turn_diagnostics(p, a):
    streams = {
        "disagreement": jnp.abs(a["student_logp"] - a["teacher_logp"]),
        "student_entropy": -a["student_logp"],
        "teacher_entropy": -a["teacher_logp"],
    }
    out = {"turn": jnp.arange(p["max_turn_log"] + 1)}
    for name, x in streams.items():
        means, rows = by_turn(x, a["mask"], turn=a["turn_step"], last=p["max_turn_log"])
        whole = masked.masked_mean(x, a["mask"])
        out |= {name: means, f"{name}_mean": whole.total / whole.weight}
        out["count"] = rows
    return out


def k3_kl_loss(p, a):
    share = shares(a["mask"], p["loss_agg_mode"])

    def loss(logp):
        per_token = losses.k3(logp, a["ref_logp"], bound=p["clamp"])
        return masked.masked_sum(share * per_token, a["mask"]), per_token

    (value, per_token), grad = jax.value_and_grad(loss, has_aux=True)(a["logp"])
    return {"per_token": per_token, "loss": value, "grad_logp": grad}


def within_turn_rtg(p, a):
    gap = a["teacher_logp"] - a["student_logp"]
    options = {"gamma": p["opd_gamma"], "normalise": p["opd_length_normalization"]}
    return {"signal": advantages.return_to_go(gap, a["mask"], **options)}


ADAPTERS = {
    f.__name__: takes_numbers(f)
    for f in (
        tdur_turn_weights,
        tdur_token_weights,
        anneal_coefs,
        soft_curriculum_weights,
        atod_advantage,
        atod_pipeline,
        grpo_outcome_advantage,
        invalid_action_penalty,
        policy_loss,
        policy_loss_micro_accumulated,
        sod_opd_advantage,
        tcod_schedule,
        sdar_loss,
        gigpo_advantage,
        turn_segments,
        per_turn_diagnostics,
        k3_kl_loss,
        within_turn_rtg,
    )
}
