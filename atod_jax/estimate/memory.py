"""Bytes per device, part by part: what stays for the whole run, and what each phase adds.

Counted from how the code computes: attention scores exist for some columns at a time (float32,
[rows, heads, QUERIES, L]), of one layer; the head keeps a bounded number of logits; gradients are
summed in float32. Buffers that XLA fuses away or reuses are counted where they are large enough to
matter, so a figure is an estimate: the tests hold it to what XLA reports for compiled programs.
"""

from collections.abc import Mapping
from typing import NamedTuple

from atod_jax.core.fused import tile_of
from atod_jax.estimate.plan import Parameter, Plan, item_bytes, parameters
from atod_jax.models import ModelConfig
from atod_jax.models.layers import QUERIES

FLOAT32 = 4
Parts = Mapping[str, float]  # name -> bytes per device


class Widths(NamedTuple):
    """Numbers per token on one device."""

    model: int
    queries: int
    keys: int  # as many values
    inner: float  # of the MLP, all experts of a token together
    routed: float  # copies of the token for its experts


def widths(config: ModelConfig, plan: Plan) -> Widths:
    """The widths of a layer, split over the tensor axis; a device holds all copies of its tokens,
    also those for the experts of other devices."""
    tensor, copies = plan.axis("tensor"), config.experts_per_token
    return Widths(
        model=config.hidden_size,
        queries=config.num_heads * config.head_dim // tensor,
        keys=config.num_kv_heads * config.head_dim // tensor,
        inner=config.intermediate_size / tensor * (copies or 1),
        routed=config.hidden_size * copies,
    )


def resident(plan: Plan) -> Parts:
    """What is there from the first to the last iteration."""
    student = local(parameters(plan.student, plan.mesh))
    parts = {
        "student weights": FLOAT32 * student,
        "student at the start": FLOAT32 * student,  # for its evaluation and the KL to it
        "Adam moments": 2 * FLOAT32 * student,
    }
    if plan.teacher:
        parts["teacher weights"] = sum(
            p.local_size * (1 if _as_integer(plan, p) else item_bytes(plan.teacher))
            for p in parameters(plan.teacher, plan.mesh)
        )
    return parts


def phases(plan: Plan) -> Mapping[str, Parts]:
    """What each phase holds on top, while it lasts."""
    found = {}
    if plan.plays:
        found["rollout"] = sampling(plan, plan.student, plan.episodes)
    found["evaluation"] = sampling(plan, plan.student, plan.eval_slots)
    if plan.teacher:
        found["teacher's evaluation"] = sampling(plan, plan.teacher, plan.eval_slots)
        found["teacher scoring"] = scoring(plan, plan.teacher)
    found["student scoring"] = scoring(plan, plan.student)
    found["update"] = update(plan)
    return found


def peak(plan: Plan) -> tuple[str, float]:
    """The phase that needs most, and the bytes per device in it, residents included."""
    extra = {name: sum(parts.values()) for name, parts in phases(plan).items()}
    name = max(extra, key=extra.__getitem__)
    return name, sum(resident(plan).values()) + extra[name]


def sampling(plan: Plan, config: ModelConfig, rows: int) -> Parts:
    """Playing `rows` episodes side by side: prompts at once, then token by token."""
    mine, size = -(-min(rows, plan.sampled or rows) // plan.shards), item_bytes(config)
    return {
        "KV cache": cache(plan, config, mine, plan.prompt + plan.columns),  # short, and grown
        "layer in work": mine * plan.prompt * _forward(widths(config, plan)) * size,
        "attention scores": _scores(plan, config, mine, plan.prompt) * _score_bytes(size),
        "attention mask": mine * plan.prompt**2,
        "logits": 6 * mine * config.vocab_size // plan.axis("tensor") * FLOAT32,
        "gathered weights": gathered(plan, config),
    }


def scoring(plan: Plan, config: ModelConfig) -> Parts:
    """One micro-batch forward, and the head over its action tokens."""
    mine, size = -(-plan.micro_rows // plan.shards), item_bytes(config)
    return {
        "layer in work": mine * plan.columns * _forward(widths(config, plan)) * size,
        "attention scores": _scores(plan, config, mine, plan.columns) * _score_bytes(size),
        "attention mask": mine * plan.columns**2,
        "head": head_tile(plan, config),
        "gathered weights": gathered(plan, config),
    }


def update(plan: Plan) -> Parts:
    """One micro-batch forward and backward, on top of the gradients of those before."""
    config, mine = plan.student, -(-plan.micro_rows // plan.shards)
    size, layer = item_bytes(config), _layer(widths(config, plan))
    scores = _scores(plan, config, mine, plan.columns)
    params = parameters(config, plan.mesh)
    saved = mine * plan.columns * saved_per_token(config, widths(config, plan)) * size
    if config.remat == "none" and plan.columns <= QUERIES:
        saved += scores * (FLOAT32 + size)
    return {
        "gradients": 2 * FLOAT32 * local(params),  # summed so far, and of this micro-batch
        "saved activations": (config.num_layers - 1) * saved,
        "layer in work": 2 * mine * plan.columns * layer * size,
        "attention scores": scores * 2 * _score_bytes(size),
        "attention mask": mine * plan.columns**2,
        "head": head_tile(plan, config)
        + min(plan.tiling.keep_megabytes * 1e6, _all_logits(plan, mine)),
        "gathered weights": gathered(plan, config),
        "their gradients": FLOAT32 * whole(plan, config),  # before they are scattered
    }


# ------------------------------------------------------------------- the pieces


def _as_integer(plan: Plan, p: Parameter) -> bool:
    return plan.teacher_int8 and p.name.endswith("/kernel") and "/router/" not in p.name


def local(params: tuple[Parameter, ...]) -> int:
    """Numbers on one device."""
    return sum(p.local_size for p in params)


def cache(plan: Plan, config: ModelConfig, rows: int, columns: int) -> int:
    """Keys and values of `rows` rows of one device."""
    keys = widths(config, plan).keys
    return 2 * config.num_layers * rows * columns * keys * item_bytes(config)


def saved_per_token(config: ModelConfig, w: Widths) -> float:
    """What one layer keeps for the backward pass, scores aside (see `transformer.REMAT`)."""
    products = w.queries + 2 * w.keys + 2 * w.model + 2 * w.inner + w.routed
    return {"full": w.model, "dots": w.model + products, "none": _layer(w)}[config.remat]


def gathered(plan: Plan, config: ModelConfig) -> float:
    """Whole copies of weights that are stored in pieces."""
    return whole(plan, config) * item_bytes(config) if plan.axis("fsdp") > 1 else 0.0


def whole(plan: Plan, config: ModelConfig) -> float:
    """Numbers of what is in use at a time, not split over fsdp: one layer, and both tables."""
    stacked, sizes = max(config.num_layers - 1, 1), {"layers": 0.0, "last": 0.0, "": 0.0}
    for p in parameters(config, plan.mesh):
        root = p.name.split("/")[0]
        kind = root if root in sizes else ""
        pieces = plan.axis("fsdp") if "fsdp" in p.mesh_axes else 1
        sizes[kind] += p.local_size * pieces / (stacked if kind == "layers" else 1)
    return max(sizes["layers"], sizes["last"]) + sizes[""]


def head_tile(plan: Plan, config: ModelConfig) -> float:
    """The logits of one tile and what is made of them; the Pallas kernel has them on the chip."""
    rows = config.vocab_size // plan.axis("tensor")
    backend, tokens, vocab = tile_of(plan.tiling, rows, plan.platform)
    return 0.0 if backend == "pallas" else 3 * tokens * vocab * FLOAT32


def _layer(w: Widths) -> float:
    """Numbers per token that one layer computes, scores aside: norms, projections, rotations,
    their sums, the MLP."""
    return 5 * w.model + 4 * w.queries + 4 * w.keys + 4 * w.inner + 5 * w.routed


def _forward(w: Widths) -> float:
    """Those alive at once when nothing is kept: the stream, its norm, and attention or MLP; a
    mixture has its tokens sorted, masked, computed and put back."""
    return 2 * w.model + max(3 * w.queries + 3 * w.keys, 3 * w.inner + 4 * w.routed)


def _score_bytes(size: int) -> int:
    """Scores and their softmax in float32, and the softmax in the compute type if that differs."""
    return 2 * FLOAT32 + (size if size < FLOAT32 else 0)


def _scores(plan: Plan, config: ModelConfig, rows: int, columns: int) -> float:
    return rows * config.num_heads / plan.axis("tensor") * min(columns, QUERIES) * columns


def _all_logits(plan: Plan, rows: int) -> float:
    places = rows * plan.response
    return places * plan.student.vocab_size / plan.axis("tensor") * FLOAT32
