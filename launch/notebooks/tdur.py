# %% [markdown]
# # T-DUR on recorded trajectories
#
# How much of the teacher's signal does each turn of an episode get? Per turn, in nats per token:
#
# * **d**, disagreement: mean of |log p_student - log p_teacher|
# * **h**, uncertainty: mean of -log p_student
# * **w** = 1 - (1 - d~)(1 - h~), with d~ and h~ scaled to [0, 1] inside the trajectory
#
# Run it as a script (`python launch/notebooks/tdur.py`) or cell by cell; half a minute on a laptop.

# %%
import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp

from atod_jax import config
from atod_jax.core.tdur import TdurConfig, turn_weights
from atod_jax.run import parts
from atod_jax.run.evaluation import Evaluator
from atod_jax.run.layouts import layouts_of
from atod_jax.run.models import load_student, load_teacher
from atod_jax.run.traces import Tracer

# %% [markdown]
# ## The trajectory in the paper's appendix
#
# Five turns of an ALFWorld episode, d and h as printed there (rounded). The paper's weights are
# 1.00, 1.00, 0.15, 0.00, 0.60.

# %%
d = jnp.array([0.101, 0.228, 0.022, 0.019, 0.138])
h = jnp.array([0.037, 0.025, 0.010, 0.006, 0.008])


def weights(d, h, **options):
    """Weights of the turns of one trajectory."""
    turns = len(d)
    return turn_weights(
        d, h, traj=jnp.zeros(turns, jnp.int32), length=jnp.ones(turns, jnp.int32), num_traj=1,
        cfg=TdurConfig(**options),
    )  # fmt: skip


print("turn      d      h   softor   d only   h only")
columns = [weights(d, h, score=s) for s in ("softor", "divergence_only", "entropy_only")]
for k, row in enumerate(zip(d, h, *columns)):
    print(f"{k:4}  " + "  ".join(f"{float(x):6.3f}" for x in row))

# %% [markdown]
# ## An episode recorded here
#
# The shipped student plays a held-out household game, student and teacher then read the ids it
# sampled. A turn that both find obvious gets little of the teacher's signal; the turn where they
# part, or where the student hesitated, gets all of it.

# %%
cfg = config.resolve(config.load("household:algo=atod,teacher=good"))
layouts = layouts_of(cfg)
mesh = layouts.student.mesh
with jax.set_mesh(mesh):
    student = load_student(cfg.student, layouts, seed=cfg.seed)
    roles = {"student": student, "teacher": load_teacher(cfg.teacher, student, layouts)}
    env = parts.environment(cfg, student.tokens)
    tasks = env.tasks(cfg.eval.split, 1)
    _, (episode,) = Evaluator(cfg, student, env, temperature=1.0).run(student.params, tasks)
    tracer = Tracer(cfg, mesh, algorithm=parts.algorithm(cfg), **roles)
    (trace,) = tracer(student.params, [episode])
    table = trace.turns

print(f"\n{episode.turns[0].observation.splitlines()[-1]}")
print("turn      d      h      w   command")
for k, turn in enumerate(episode.turns):
    print(f"{k:4}  " + "  ".join(f"{table[c][k]:5.2f}" for c in "dhw") + f"   {turn.command}")
print("solved" if episode.success else "not solved")
