"""CPU time of the whole ATOD signal, four ways in one run: 4096 rows of 512 tokens.

    pytest -m bench -s tests/bench/bench_signal.py

512 trajectories of 8 turns, groups of 8 rollouts, ragged turns, rows shuffled; released settings.
The loop form walks rows and trajectories in Python with dictionaries from ids to rows, as the
reference implementation does. All forms must agree before they are timed. They compute the
advantage alone, so ours is timed without and with the diagnostics that come with it.
"""

import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atod_jax.algorithms import atod
from atod_jax.types import Rows, TokenStats, TurnBatch

N, R, B, GROUP, UPDATE = 4096, 512, 512, 8, 17
KAPPA, RHO = 1 - 0.9 * UPDATE / 80, 1 + UPDATE / 80


def make_inputs():
    """NumPy arrays of one step of experience."""
    rng = np.random.default_rng(0)
    order = rng.permutation(N)
    mask = np.arange(R) < rng.integers(1, R + 1, N)[:, None]
    logp = [np.where(mask, -rng.exponential(s, (N, R)), 0).astype(np.float32) for s in (0.6, 0.8)]
    return {
        "student": logp[0], "teacher": logp[1], "mask": mask,
        "traj": (np.arange(N) // (N // B))[order].astype(np.int32),
        "turn": (np.arange(N) % (N // B))[order].astype(np.int32),
        "valid": rng.random(N) < 0.9,
        "returns": rng.choice([0.0, 10.0], B).astype(np.float32),
        "group": (np.arange(B) // GROUP).astype(np.int32),
    }  # fmt: skip


def as_batch(x):
    """The inputs as the package's types."""
    rows = Rows(
        prompt=np.zeros((N, 1), np.int32), prompt_length=np.ones(N, np.int32),
        action=np.zeros((N, R), np.int32), action_mask=x["mask"], sampler_logp=x["student"],
        traj=x["traj"], turn=x["turn"], action_valid=x["valid"],
        reward=np.zeros(N, np.float32), anchor=np.zeros(N, np.int32),
    )  # fmt: skip
    batch = TurnBatch(rows=rows, returns=x["returns"], group=x["group"])
    models = [TokenStats(logp=x[m], entropy=-x[m]) for m in ("student", "teacher")]
    return jax.tree.map(jnp.asarray, (batch, *models))


def array_form(x, xp, total, lowest, highest):
    """Vectorised, for NumPy and torch: only the reductions by id differ between the two."""
    mask = x["mask"]
    length = mask.sum(1)
    d = xp.where(mask, abs(x["student"] - x["teacher"]), 0.0).sum(1) / length
    h = xp.where(mask, -x["student"], 0.0).sum(1) / length

    def scaled(v):
        low, high = lowest(v, x["traj"], B)[x["traj"]], highest(v, x["traj"], B)[x["traj"]]
        flat = high - low <= 1e-8
        return xp.where(flat, 0.5, (v - low) / xp.where(flat, 1.0, high - low))

    z = 1 - (1 - scaled(d)) * (1 - scaled(h))
    enough = (total(xp.ones_like(d), x["traj"], B) >= 3) & (highest(d, x["traj"], B) >= 0.01)
    z = xp.where(enough[x["traj"]], z, 1.0)
    score = x["returns"][x["traj"]] - 0.1 * (~x["valid"])
    group, groups = x["group"][x["traj"]], B // GROUP
    count = total(xp.ones_like(score), group, groups)
    centred = score - (total(score, group, groups) / count)[group]
    std = (total(centred**2, group, groups) / (count - 1)) ** 0.5
    reward = centred / (std[group] + 1e-6)
    gap = KAPPA * z[:, None] * (x["teacher"] - x["student"]) + RHO * reward[:, None]
    return xp.where(mask, gap, 0.0)


def numpy_form(x):
    """Reductions by id with `ufunc.at`."""

    def reducer(ufunc, start):
        def reduce(v, ids, n):
            out = np.full(n, start, v.dtype)
            ufunc.at(out, ids, v)
            return out

        return reduce

    reducers = reducer(np.add, 0.0), reducer(np.minimum, np.inf), reducer(np.maximum, -np.inf)
    return array_form(x, np, *reducers)


def torch_form(x, torch):
    """Reductions by id with `scatter_reduce`."""

    def reducer(name):
        def reduce(v, ids, n):
            return torch.zeros(n, dtype=v.dtype).scatter_reduce(
                0, ids, v, name, include_self=name == "sum"
            )

        return reduce

    return array_form(x, torch, reducer("sum"), reducer("amin"), reducer("amax"))


def loop_form(x):
    """Rows and trajectories one by one."""
    weights, by_traj, by_group = np.ones(N), {}, {}
    scores = np.array([x["returns"][x["traj"][n]] - 0.1 * (not x["valid"][n]) for n in range(N)])
    d, h = np.zeros(N), np.zeros(N)
    for n in range(N):
        mask = x["mask"][n]
        length = mask.sum()
        d[n] = (np.abs(x["student"][n] - x["teacher"][n]) * mask).sum() / length
        h[n] = (-x["student"][n] * mask).sum() / length
        by_traj.setdefault(int(x["traj"][n]), []).append(n)
        by_group.setdefault(int(x["group"][x["traj"][n]]), []).append(n)
    for rows in by_traj.values():
        rows = sorted(rows, key=lambda n: x["turn"][n])
        if len(rows) >= 3 and max(d[rows]) >= 0.01:
            scaled = [
                np.full(len(rows), 0.5) if np.ptp(v[rows]) <= 1e-8
                else (v[rows] - v[rows].min()) / np.ptp(v[rows])
                for v in (d, h)
            ]  # fmt: skip
            weights[rows] = 1 - (1 - scaled[0]) * (1 - scaled[1])
    out = np.zeros((N, R), np.float32)
    for rows in by_group.values():
        mean, std = scores[rows].mean(), scores[rows].std(ddof=1)
        for n in rows:
            gap = KAPPA * weights[n] * (x["teacher"][n] - x["student"][n])
            out[n] = (gap + RHO * (scores[n] - mean) / (std + 1e-6)) * x["mask"][n]
    return out


@pytest.mark.bench
def test_cpu_time_of_the_signal():
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    x = make_inputs()
    device = jax.devices()[0]
    arguments = jax.device_put((*as_batch(x), jnp.array(UPDATE - 1)), device)
    whole = jax.jit(lambda *a: atod.signal(atod.Config(), *a))
    alone = jax.jit(lambda *a: atod.signal(atod.Config(), *a).advantage)
    forms = {
        "atod.signal": lambda: jax.block_until_ready(alone(*arguments)),
        "with diagnostics": lambda: jax.block_until_ready(whole(*arguments)).advantage,
        "NumPy": lambda: numpy_form(x),
        "Python loops": lambda: loop_form(x),
    }
    try:
        import torch
    except ImportError:
        print("\nno torch here: that row is left out")
    else:
        torch.set_num_threads(1)
        on_torch = {k: torch.from_numpy(v) for k, v in x.items()}
        on_torch |= {k: on_torch[k].long() for k in ("traj", "group")}
        forms["torch"] = lambda: torch_form(on_torch, torch).numpy()
    want = forms["Python loops"]()
    seconds = {}
    for name, run in forms.items():
        np.testing.assert_allclose(np.asarray(run()), want, rtol=2e-3, atol=2e-4, err_msg=name)
        seconds[name] = []
    for _ in range(7):
        for name, run in forms.items():
            started = time.process_time()
            run()
            seconds[name].append(time.process_time() - started)
    base = statistics.median(seconds["Python loops"])
    print(f"\n{N} rows x {R} tokens; target: atod.signal at least 5 times faster than loops")
    for name, values in seconds.items():
        value = statistics.median(values)
        print(f"{name:20} {1000 * value:7.1f} CPU-ms   {base / value:5.1f} x faster than loops")
