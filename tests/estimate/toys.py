"""Plans small enough to check by hand."""

from atod_jax.estimate.plan import Placed, Plan
from atod_jax.models import ModelConfig

TOY = ModelConfig(
    vocab_size=100,
    hidden_size=8,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    intermediate_size=16,
    rope_theta=1e4,
    rms_eps=1e-6,
    tie_embeddings=True,
)
# embedding 100 * 8; per layer q 8*2*4, k and v 8*1*4 each, o 2*4*8, MLP 3 * 8*16, norms 8+8+4+4
TOY_LAYER = 64 + 32 + 32 + 64 + 384 + 24
TOY_PARAMETERS = 800 + 2 * TOY_LAYER + 8


def place(model=TOY, mesh=None, **changes) -> Placed:
    """A model on one device, or on those of `mesh`."""
    shape = {"data": 1, "fsdp": 1, "tensor": 1, "expert": 1} | (mesh or {})
    return Placed(model, tuple(shape.items()), **changes)


def make_plan(
    student=TOY, *, mesh=None, sampling=None, teacher=None, adapters=0, **changes
) -> Plan:
    """Eight episodes of three turns, on one device unless `mesh` says otherwise.

    The student samples on `mesh` too unless `sampling` is another one; a teacher given as a
    config is on `mesh` in its own type.
    """
    if isinstance(teacher, ModelConfig):
        teacher = place(teacher, mesh, storage=teacher.dtype)
    fields = {
        "episodes": 8,
        "eval_slots": 8,
        "turns": 3,
        "prompt": 10,
        "response": 6,
        "micro_rows": 4,
        "minibatch_rows": 8,
        "platform": "cpu",
    }
    return Plan(
        student=place(student, mesh, adapters=adapters),
        sampling=place(student, sampling or mesh, adapters=adapters),
        teacher=teacher,
        **(fields | changes),
    )
