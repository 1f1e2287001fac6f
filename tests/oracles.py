"""The method in plain Python loops and float64, one function per equation, and random batches.

Written from the equations, independently of the package: slow, obvious, and never jitted.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from atod_jax.types import Rows, TokenStats, TurnBatch


def group_relative(scores, traj, group, *, statistics="turns", scale=True, eps=1e-6):
    """Advantage per row; rows with traj == len(group) are padding and get 0."""
    out = np.zeros(len(scores))
    for g in set(np.asarray(group).tolist()):
        members = [i for i, t in enumerate(traj) if t < len(group) and group[t] == g]
        samples, seen = [], set()
        for i in members:
            if statistics == "turns" or traj[i] not in seen:
                samples.append(float(scores[i]))
            seen.add(traj[i])
        mean, std = 0.0, 1.0
        if len(samples) > 1:
            mean = sum(samples) / len(samples)
            std = math.sqrt(sum((x - mean) ** 2 for x in samples) / (len(samples) - 1))
            if len(set(samples)) == 1:
                mean, std = samples[0], 0.0
        for i in members:
            out[i] = (float(scores[i]) - mean) / (std + eps if scale else 1.0)
    return out


def row_scores(returns, traj, valid, *, penalty):
    return np.array(
        [
            float(returns[t]) - penalty * (not ok) if t < len(returns) else 0.0
            for t, ok in zip(traj, valid)
        ]
    )


def step_returns(rewards, traj, turn, *, gamma):
    out = np.zeros(len(rewards))
    for i in range(len(rewards)):
        later = [j for j in range(len(rewards)) if traj[j] == traj[i] and turn[j] >= turn[i]]
        out[i] = sum(gamma ** (turn[j] - turn[i]) * float(rewards[j]) for j in later)
    return out


def turn_signals(student, teacher, mask):
    d, h = np.zeros(len(mask)), np.zeros(len(mask))
    for n in range(len(mask)):
        tokens = [t for t in range(mask.shape[1]) if mask[n, t]]
        if tokens:
            gaps = [abs(float(student[n, t]) - float(teacher[n, t])) for t in tokens]
            d[n] = sum(gaps) / len(tokens)
            h[n] = sum(-float(student[n, t]) for t in tokens) / len(tokens)
    return d, h


def turn_weights(
    d,
    h,
    traj,
    length,
    *,
    num_traj,
    score="softor",
    min_turns=3,
    min_divergence=0.01,
    top_rho=1.0,
    smoothing=0.0,
    mean_preserving=False,
):
    out = np.ones(len(d))
    for b in range(num_traj):
        rows = [i for i in range(len(d)) if traj[i] == b]
        if len(rows) < max(1, min_turns) or max(d[i] for i in rows) < min_divergence:
            continue
        z = _scores([d[i] for i in rows], [h[i] for i in rows], score)
        if top_rho < 1:
            threshold = sorted(z, reverse=True)[max(1, math.ceil(len(z) * top_rho)) - 1]
            z = [x if x >= threshold else 0.0 for x in z]
        z = [(1 - smoothing) * x + smoothing for x in z]
        tokens = [int(length[i]) for i in rows]
        if mean_preserving and top_rho >= 1 and sum(tokens) > 0:
            mean = sum(n * x for n, x in zip(tokens, z)) / sum(tokens)
            ratio = [min(max(x / (mean + 1e-8), 0.5), 2.0) for x in z]
            mean = sum(n * x for n, x in zip(tokens, ratio)) / sum(tokens)
            z = [x / (mean + 1e-8) for x in ratio]
        for i, x in zip(rows, z):
            out[i] = x
    return out


def _scores(d, h, score):
    d, h = _min_max(d), _min_max(h)
    if score == "divergence_only":
        return d
    if score == "entropy_only":
        return h
    return [1 - (1 - a) * (1 - b) for a, b in zip(d, h)]


def _min_max(x):
    low, high = min(x), max(x)
    if high - low <= 1e-8:
        return [0.5] * len(x)
    return [(v - low) / (high - low) for v in x]


def mix(update, *, kappa=(1.0, 0.1), rho=(1.0, 2.0), steps=80):
    if steps <= 0:
        return kappa[0], rho[0]
    p = min(max(update / steps, 0.0), 1.0)
    return max(kappa[1], kappa[0] - (kappa[0] - kappa[1]) * p), rho[0] + (rho[1] - rho[0]) * p


def surrogate(logp, old_logp, advantage, *, low=0.2, high=0.2, dual=3.0):
    """Loss of one token and its derivative in logp (away from the kinks)."""
    ratio = math.exp(logp - old_logp)
    if advantage < 0 and ratio >= dual:
        return -advantage * dual, 0.0
    if (advantage > 0 and ratio > 1 + high) or (advantage < 0 and ratio < 1 - low):
        return -advantage * min(max(ratio, 1 - low), 1 + high), 0.0
    return -advantage * ratio, -advantage * ratio


def token_stats(hidden, head, action, mask, *, temperature, forbidden=()):
    """Log-probability and entropy from full logits, token by token."""
    logp, entropy = np.zeros(action.shape), np.zeros(action.shape)
    keep = np.array([v for v in range(len(head)) if v not in forbidden])
    for n, r in zip(*np.nonzero(mask)):
        logits = np.asarray(head, np.float64) @ np.asarray(hidden[n, r], np.float64) / temperature
        top = logits[keep].max()
        log_z = top + math.log(np.exp(logits[keep] - top).sum())
        p = np.exp(logits[keep] - log_z)
        logp[n, r] = logits[action[n, r]] - log_z
        entropy[n, r] = -(p * (logits[keep] - log_z)).sum()
    return logp, entropy


def atod_advantage(batch, student, teacher, *, kappa, rho, penalty, statistics="turns", **tdur):
    """A[n, t] = kappa w (lpT - lpS) + rho A_GRPO, with the options of `turn_weights`."""
    rows = {k: np.asarray(v) for k, v in vars(batch.rows).items()}
    mask, traj = rows["action_mask"], rows["traj"]
    d, h = turn_signals(np.asarray(student.logp), np.asarray(teacher.logp), mask)
    weights = turn_weights(d, h, traj, mask.sum(1), num_traj=len(batch.returns), **tdur)
    scores = row_scores(batch.returns, traj, rows["action_valid"], penalty=penalty)
    reward = group_relative(scores, traj, np.asarray(batch.group), statistics=statistics)
    gap = np.asarray(teacher.logp, np.float64) - np.asarray(student.logp, np.float64)
    return np.where(mask, kappa * weights[:, None] * gap + rho * reward[:, None], 0.0)


def gigpo(batch, *, gamma, weight, penalty, scale=True):
    """E + weight * S per row: group advantage plus the comparison inside (group, anchor)."""
    rows = {k: np.asarray(v) for k, v in vars(batch.rows).items()}
    traj, group = rows["traj"], np.asarray(batch.group)
    scores = row_scores(batch.returns, traj, rows["action_valid"], penalty=penalty)
    episode = group_relative(scores, traj, group, scale=scale)
    returns = step_returns(rows["reward"], traj, rows["turn"], gamma=gamma)
    returns = returns - penalty * ~rows["action_valid"]
    out = np.zeros(len(traj))
    for i in (i for i in range(len(traj)) if traj[i] < len(group)):
        key = group[traj[i]], rows["anchor"][i]
        mates = [
            returns[j]
            for j in range(len(traj))
            if traj[j] < len(group) and (group[traj[j]], rows["anchor"][j]) == key
        ]
        centred = returns[i] - np.mean(mates)
        std = np.std(mates, ddof=1) if len(mates) > 1 else 0.0
        if len(set(mates)) == 1:
            centred = 0.0
        out[i] = episode[i] + weight * (centred / (std + 1e-6) if scale else centred)
    return out


def sod_weights(d, traj, turn, *, num_traj, delta, eps=1e-6):
    """The running product of the paper, uncapped, with the cap on each output."""
    out = np.ones(len(d))
    for b in range(num_traj):
        rows = sorted((i for i in range(len(d)) if traj[i] == b), key=lambda i: turn[i])
        product = 1.0
        for before, i in itertools.pairwise(rows):
            product *= (float(d[before]) + eps) / (float(d[i]) + eps)
            out[i] = min(product, 1 + delta)
    return out


def token_shares(mask, traj, *, num_traj, mode):
    """Share of each token in the loss, mode by mode."""
    out = np.zeros(mask.shape)
    real = [n for n in range(len(mask)) if traj[n] < num_traj]
    total = sum(int(mask[n].sum()) for n in real)
    played = {int(traj[n]) for n in real if mask[n].any()}
    for n in real:
        for t in np.flatnonzero(mask[n]):
            own = mask[n].sum()
            of_traj = sum(int(mask[m].sum()) for m in real if traj[m] == traj[n])
            out[n, t] = {
                "token-mean": 1 / total,
                "seq-mean-token-mean": 1 / (own * len(real)),
                "seq-mean-token-sum": 1 / len(real),
                "seq-mean-token-sum-norm": 1 / mask.shape[1],
                "trajectory-mean-token-mean": 1 / (of_traj * len(played)),
            }[mode]
    return out


# ----------------------------------------------------------------------------------- random batches


def ragged_batch(seed, *, trajectories=8, group_size=4, width=7, rows=64, longest=7):
    """(batch, student, teacher): shuffled rows, some without tokens, the last places padding.

    The number of rows is fixed, so that tests with many seeds compile once.
    """
    rng, other = np.random.default_rng(seed), np.random.default_rng((seed, 1))
    turns = rng.integers(1, longest + 1, trajectories)
    padding = rows - turns.sum()
    traj = np.concatenate([np.repeat(np.arange(trajectories), turns), [trajectories] * padding])
    turn = np.concatenate([*[np.arange(k) for k in turns], np.zeros(padding, int)])
    length = np.where(traj < trajectories, rng.integers(0, width + 1, len(traj)), 0)
    order = rng.permutation(len(traj))
    traj, turn, length = traj[order], turn[order], length[order]
    mask = np.arange(width) < length[:, None]
    rows = Rows(
        action=jnp.asarray(rng.integers(0, 50, mask.shape)),
        action_mask=jnp.asarray(mask),
        sampler_logp=_logp(rng, mask),
        traj=jnp.asarray(traj),
        turn=jnp.asarray(turn),
        action_valid=jnp.asarray(rng.random(len(traj)) < 0.7),
        reward=jnp.asarray(np.where(traj < trajectories, other.choice([0.0, 1.0], len(traj)), 0.0)),
        anchor=jnp.asarray(other.integers(0, 5, len(traj))),
    )
    batch = TurnBatch(
        rows=rows,
        returns=jnp.asarray(rng.choice([0.0, 10.0], trajectories), jnp.float32),
        group=jnp.arange(trajectories) // group_size,
    )
    models = [TokenStats(logp=_logp(rng, mask), entropy=-_logp(rng, mask)) for _ in range(2)]
    return batch, *models


def permuted(tree, order):
    """Every [N, ...] array of a tree with its rows in another order."""
    return jax.tree.map(lambda x: x[jnp.asarray(order)], tree)


def _logp(rng, mask):
    return jnp.asarray(np.where(mask, -rng.exponential(1.0, mask.shape), 0.0), jnp.float32)
