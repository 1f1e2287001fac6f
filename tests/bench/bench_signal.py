"""CPU time of the whole ATOD signal, five ways in one run: 4096 rows of 512 tokens.

    pytest -m bench -s tests/bench/bench_signal.py

512 trajectories of 8 turns, groups of 8 rollouts, ragged turns, rows shuffled; released settings.
The loops walk rows, groups and trajectories in Python, a small array per row, as the reference does
(in torch). All forms must agree first; they compute the advantage alone, ours also its diagnostics.
"""

import collections
import functools
import importlib.util
import statistics
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from alone import run_alone

from atod_jax.algorithms import atod
from atod_jax.algorithms.base import Step
from atod_jax.types import Rows, TokenStats, TurnBatch

N, R, B, GROUP, UPDATE = 4096, 512, 512, 8, 17
KAPPA, RHO = 1 - 0.9 * UPDATE / 80, 1 + UPDATE / 80


def make_inputs():
    """NumPy arrays of one step of experience."""
    rng = np.random.default_rng(0)
    order = rng.permutation(N)
    mask = np.arange(R) < rng.integers(1, R + 1, N)[:, None]
    logp = [np.where(mask, -rng.exponential(s, (N, R)), 0).astype(np.float32) for s in (0.6, 0.8)]
    return types.SimpleNamespace(
        student=logp[0], teacher=logp[1], mask=mask, traj=order // (N // B), turn=order % (N // B),
        valid=rng.random(N) < 0.9, returns=rng.choice([0.0, 10.0], B), group=np.arange(B) // GROUP,
    )  # fmt: skip


def as_batch(x):
    """The inputs as the package's types."""
    rows = Rows(
        prompt=np.zeros((N, 1), np.int32), prompt_length=np.ones(N, np.int32),
        action=np.zeros((N, R), np.int32), action_mask=x.mask, sampler_logp=x.student,
        traj=x.traj.astype(np.int32), turn=x.turn.astype(np.int32), action_valid=x.valid,
        reward=np.zeros(N, np.float32), anchor=np.zeros(N, np.int32),
    )  # fmt: skip
    batch = TurnBatch(rows=rows, returns=np.float32(x.returns), group=np.int32(x.group))
    models = [TokenStats(logp=v, entropy=-v) for v in (x.student, x.teacher)]
    return jax.tree.map(jnp.asarray, (batch, *models, np.int32(UPDATE - 1)))


def array_form(x, xp, lowest, highest):
    """Whole arrays, for NumPy and torch: only minimum and maximum by id differ between the two."""
    length, gap = x.mask.sum(1), x.teacher - x.student
    d = xp.where(x.mask, abs(gap), 0.0).sum(1) / length
    h = xp.where(x.mask, -x.student, 0.0).sum(1) / length

    def scaled(v):
        low, span = lowest(v), highest(v) - lowest(v)
        flat = span <= 1e-8
        return xp.where(flat[x.traj], 0.5, (v - low[x.traj]) / xp.where(flat, 1.0, span)[x.traj])

    used = (xp.bincount(x.traj) >= 3) & (highest(d) >= 0.01)
    z = xp.where(used[x.traj], 1 - (1 - scaled(d)) * (1 - scaled(h)), 1.0)
    score, group = x.returns[x.traj] - 0.1 * ~x.valid, x.group[x.traj]
    count = xp.bincount(group)
    centred = score - (xp.bincount(group, score) / count)[group]
    std = (xp.bincount(group, centred**2) / (count - 1)) ** 0.5
    scale, shift = KAPPA * z, RHO * centred / (std[group] + 1e-6)
    scale, shift = (xp.asarray(v, dtype=xp.float32)[:, None] for v in (scale, shift))
    return (scale * gap + shift) * x.mask


def numpy_form(x):
    """Minimum and maximum by id with `reduceat` on sorted rows."""
    order = np.argsort(x.traj)
    at = np.searchsorted(x.traj[order], np.arange(B))
    low, high = np.minimum.reduceat, np.maximum.reduceat
    return array_form(x, np, lambda v: low(v[order], at), lambda v: high(v[order], at))


def torch_form(x, torch):
    """Minimum and maximum by id with `scatter_reduce`."""
    by_id = functools.partial(torch.zeros(B).scatter_reduce, 0, x.traj, include_self=False)
    return array_form(x, torch, lambda v: by_id(v, "amin"), lambda v: by_id(v, "amax"))


def loop_form(x, xp):
    """Rows, groups and trajectories one by one; the small arrays are NumPy's or torch's."""
    d, h, score = [0.0] * N, [0.0] * N, [0.0] * N
    by_traj, by_group = collections.defaultdict(list), collections.defaultdict(list)
    for n, (traj, valid) in enumerate(zip(x.traj.tolist(), x.valid.tolist())):
        mask, length = x.mask[n], float(x.mask[n].sum())
        d[n] = float((abs(x.student[n] - x.teacher[n]) * mask).sum()) / length
        h[n] = float((-x.student[n] * mask).sum()) / length
        score[n] = float(x.returns[traj]) - 0.1 * (not valid)
        by_traj[traj].append(n)
        by_group[int(x.group[traj])].append(n)
    reward, weight = [0.0] * N, xp.ones_like(x.student)
    for rows in by_group.values():
        values = np.array([score[n] for n in rows])
        for n, value in zip(rows, (values - values.mean()) / (values.std(ddof=1) + 1e-6)):
            reward[n] = float(value)
    for rows in by_traj.values():
        if len(rows) >= 3 and max(d[n] for n in rows) >= 0.01:
            for n, a, b in zip(rows, *(min_max([v[n] for n in rows]) for v in (d, h))):
                weight[n] = xp.where(x.mask[n], 1 - (1 - a) * (1 - b), 1.0)
    reward = xp.asarray(reward, dtype=xp.float32)[:, None]
    return (KAPPA * weight * (x.teacher - x.student) + RHO * reward) * x.mask


def min_max(values):
    """A list scaled to [0, 1]; 0.5 where all are equal."""
    low, span = min(values), max(values) - min(values)
    return [(v - low) / span if span > 1e-8 else 0.5 for v in values]


@pytest.mark.bench
def test_cpu_time_of_the_signal():
    print(run_alone(__file__))


def main() -> None:
    """Compares, times and prints."""
    x = make_inputs()
    arguments, cfg = as_batch(x), atod.preset("released")
    whole = jax.jit(lambda *a: atod.signal(cfg, Step(*a)))
    alone = jax.jit(lambda *a: atod.signal(cfg, Step(*a)).advantage)
    forms = {
        "atod.signal": lambda: jax.block_until_ready(alone(*arguments)),
        "with diagnostics": lambda: jax.block_until_ready(whole(*arguments)).advantage,
        "arrays, NumPy": lambda: numpy_form(x), "loops, NumPy": lambda: loop_form(x, np),
    }  # fmt: skip
    torch = importlib.util.find_spec("torch") and importlib.import_module("torch")
    base = "loops, torch" if torch else "loops, NumPy"
    if torch:
        torch.set_num_threads(1)
        y = types.SimpleNamespace(**{k: torch.from_numpy(v) for k, v in vars(x).items()})
        forms["arrays, torch"] = lambda: torch_form(y, torch)
        forms["loops, torch"] = lambda: loop_form(y, torch)
    want, seconds = np.asarray(forms[base]()), {name: [] for name in forms}
    for name, run in forms.items():
        np.testing.assert_allclose(np.asarray(run()), want, rtol=1e-4, atol=1e-5, err_msg=name)
    for _ in range(9):
        for name, run in forms.items():
            started = time.process_time()
            run()
            seconds[name].append(time.process_time() - started)
    print(f"\n{N} rows x {R} tokens; target: atod.signal 5 times less than {base}")
    for name, values in seconds.items():
        value, ratio = (statistics.median(v) for v in (values, seconds[base]))
        print(f"{name:17} {1000 * value:7.1f} CPU-ms  {ratio / value:6.1f} times less")


if __name__ == "__main__":
    main()
