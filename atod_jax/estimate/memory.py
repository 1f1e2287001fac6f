"""Bytes per device, part by part: what stays for the whole run, and what each phase adds; for each
kind of device where the teacher has its own.

Counted from how the code computes: attention scores exist for some columns at a time (float32,
[rows, heads, QUERIES, L]), of one layer; the head keeps a bounded number of logits; gradients are
summed in float32. Buffers that XLA fuses away or reuses are counted where they are large enough to
matter, so a figure is an estimate: the tests hold it to what XLA reports for compiled programs.
"""

from collections.abc import Mapping
from typing import NamedTuple

from atod_jax.core.blocks import block_tokens
from atod_jax.estimate.plan import Parameter, Placed, Plan, added, parameters, trained
from atod_jax.models import ModelConfig
from atod_jax.models.layers import QUERIES

FLOAT32 = 4
COPY = "weights to play"  # the student's, in another layout
Parts = dict[str, float]  # name -> bytes per device


class Widths(NamedTuple):
    """Numbers per token on one device."""

    model: int
    queries: int
    keys: int  # as many values
    inner: float  # of the MLP, all experts of a token together
    routed: float  # copies of the token for its experts


def widths(placed: Placed) -> Widths:
    """The widths of a layer, split over the tensor axis; a device holds all copies of its tokens,
    also those for the experts of other devices."""
    config, copies = placed.model, placed.model.experts_per_token
    return Widths(
        model=config.hidden_size,
        queries=config.num_heads * config.head_dim // placed.split("heads"),
        keys=config.num_kv_heads * config.head_dim // placed.split("kv_heads"),
        inner=config.intermediate_size / placed.split("mlp") * (copies or 1),
        routed=config.hidden_size * copies,
    )


class Needs(NamedTuple):
    """What one kind of device has to hold."""

    whose: str  # "" = all devices are of one kind; student | teacher
    devices: int
    resident: Parts  # there from the first to the last iteration
    phases: Mapping[str, Parts]  # what each phase holds on top, while it lasts

    @property
    def peak(self) -> tuple[str, float]:
        """The phase that needs most, and the bytes per device in it, residents included."""
        extra = {name: sum(parts.values()) for name, parts in self.phases.items()}
        name = max(extra, key=extra.__getitem__)
        return name, sum(self.resident.values()) + extra[name]


def needs(plan: Plan) -> tuple[Needs, ...]:
    """One for all devices, or the student's and the teacher's where each has its own."""
    ours, theirs = _student(plan), _teacher(plan)
    if plan.reserved and plan.teacher:
        return (
            Needs("student", plan.student.devices, *ours),
            Needs("teacher", plan.teacher.devices, *theirs),
        )
    (resident, phases), (more, others) = ours, theirs
    return (Needs("", plan.student.devices, {**resident, **more}, {**phases, **others}),)


def largest(plan: Plan) -> Needs:
    """Those of the kind of device that needs most."""
    return max(needs(plan), key=lambda kind: kind.peak[1])


def peak(plan: Plan) -> tuple[str, float]:
    """The phase that needs most, and the bytes in it on each of its devices."""
    return largest(plan).peak


def temporaries(plan: Plan) -> Mapping[str, float]:
    """Bytes of the phases on the student's devices that their programs take beside arguments."""
    phases = needs(plan)[0].phases
    return {
        name: sum(size for part, size in parts.items() if part != COPY)
        for name, parts in phases.items()
    }


def _student(plan: Plan) -> tuple[Parts, Mapping[str, Parts]]:
    learns, weights = local(trained(plan.student)), everything(plan.student)
    resident = {
        "student weights": FLOAT32 * local(weights),
        "student at the start": FLOAT32 * learns,  # for its evaluation and the KL to it
        "Adam moments": 2 * FLOAT32 * learns,
        **_teacher_head(plan),
    }
    copy = FLOAT32 * local(everything(plan.sampling)) if plan.copies else 0.0

    def plays(rows: int) -> Parts:
        return ({COPY: copy} if copy else {}) | sampling(plan, plan.sampling, rows)

    phases = {"rollout": plays(plan.episodes)} if plan.plays else {}
    phases["evaluation"] = plays(plan.eval_slots)
    phases["student scoring"] = scoring(plan, plan.student)
    if plan.scored_by == "student":
        phases["teacher scoring"] = scoring(plan, plan.student) | states(plan, plan.student)
    phases["update"] = update(plan) | states(plan, plan.student)
    return resident, phases


def _teacher_head(plan: Plan) -> Parts:
    """A copy of it where the student's is computed, split like that; for an exact KL."""
    if not (plan.exact and plan.scorer):
        return {}
    model, rows = plan.scorer.model, plan.scorer.model.vocab_size / plan.student.split("vocab")
    return {"teacher's head": rows * model.hidden_size * plan.scorer.item_bytes}


def states(plan: Plan, placed: Placed) -> Parts:
    """The teacher's final states of all action tokens of the batch, on the mesh of `placed`."""
    if not (plan.exact and plan.scorer):
        return {}
    tokens = plan.minibatches * plan.minibatch_rows / placed.shards * plan.response
    width = plan.scorer.model.hidden_size
    return {"teacher's states": tokens * width * plan.scorer.item_bytes}


def _teacher(plan: Plan) -> tuple[Parts, Mapping[str, Parts]]:
    if plan.teacher is None:
        return {}, {}
    stored = sum(p.local_size * plan.teacher.stored_bytes(p) for p in parameters(plan.teacher))
    # where it judges no batches, it still does the transcripts of evaluations
    judges = "teacher scoring" if plan.scored_by == "teacher" else "teacher on transcripts"
    return {"teacher weights": stored}, {
        "teacher's evaluation": sampling(plan, plan.teacher, plan.eval_slots),
        judges: scoring(plan, plan.teacher) | states(plan, plan.teacher),
    }


def sampling(plan: Plan, placed: Placed, rows: int) -> Parts:
    """Playing `rows` episodes side by side: prompts at once, then token by token."""
    mine, size = -(-min(rows, plan.sampled or rows) // placed.shards), placed.item_bytes
    return {
        "KV cache": cache(placed, mine, plan.prompt + plan.columns),  # short, and grown
        "layer in work": mine * plan.prompt * _forward(plan, placed) * size,
        **dense_mixture(plan, placed, mine * plan.prompt),
        "attention scores": _scores(placed, mine, plan.prompt) * _score_bytes(size),
        "attention mask": mine * plan.prompt**2,
        "logits": 6 * mine * placed.model.vocab_size // placed.split("vocab") * FLOAT32,
        "gathered weights": gathered(placed),
    }


def scoring(plan: Plan, placed: Placed) -> Parts:
    """One micro-batch forward, and the head over its action tokens."""
    mine, size = -(-plan.micro_rows // placed.shards), placed.item_bytes
    return {
        "layer in work": mine * plan.columns * _forward(plan, placed) * size,
        **dense_mixture(plan, placed, mine * plan.columns),
        "attention scores": _scores(placed, mine, plan.columns) * _score_bytes(size),
        "attention mask": mine * plan.columns**2,
        "head": head_block(plan, placed),
        "gathered weights": gathered(placed),
    }


def update(plan: Plan) -> Parts:
    """One micro-batch forward and backward, on top of the gradients of those before."""
    placed, mine = plan.student, -(-plan.micro_rows // plan.student.shards)
    config, size, layer = placed.model, placed.item_bytes, _layer(widths(placed))
    scores = _scores(placed, mine, plan.columns)
    saved = mine * plan.columns * saved_per_token(config, widths(placed)) * size
    if config.remat == "none" and plan.columns <= QUERIES:
        saved += scores * (FLOAT32 + size)
    return {
        # summed so far, and of this micro-batch
        "gradients": 2 * FLOAT32 * local(trained(placed)),
        "saved activations": (config.num_layers - 1) * saved,
        "layer in work": 2 * mine * plan.columns * layer * size,
        **dense_mixture(plan, placed, mine * plan.columns, trains=True),
        "attention scores": scores * 2 * _score_bytes(size),
        "attention mask": mine * plan.columns**2,
        "head": head_block(plan, placed),
        "gathered weights": gathered(placed),
        # before they are scattered
        "their gradients": FLOAT32 * (0 if placed.adapters else whole(placed)),
    }


# ------------------------------------------------------------------- the pieces


def local(params: tuple[Parameter, ...]) -> int:
    """Numbers on one device."""
    return sum(p.local_size for p in params)


def everything(placed: Placed) -> tuple[Parameter, ...]:
    """The weights that a model computes with."""
    return parameters(placed) + added(placed)


def cache(placed: Placed, rows: int, columns: int) -> int:
    """Keys and values of `rows` rows of one device."""
    layers, keys = placed.model.num_layers, widths(placed).keys
    return 2 * layers * rows * columns * keys * placed.item_bytes


def saved_per_token(config: ModelConfig, w: Widths) -> float:
    """What one layer keeps for the backward pass, scores aside (see `transformer.REMAT`)."""
    products = w.queries + 2 * w.keys + 2 * w.model + 2 * w.inner + w.routed
    return {"full": w.model, "dots": w.model + products, "none": _layer(w)}[config.remat]


def gathered(placed: Placed) -> float:
    """Whole copies of weights that are stored in pieces."""
    in_pieces = any(placed.pieces(p) > 1 for p in parameters(placed))
    return whole(placed) * placed.item_bytes if in_pieces else 0.0


def whole(placed: Placed) -> float:
    """Numbers of what is in use at a time, gathered: one layer, and both tables."""
    stacked, sizes = max(placed.model.num_layers - 1, 1), {"layers": 0.0, "last": 0.0, "": 0.0}
    for p in parameters(placed):
        root = p.name.split("/")[0]
        kind = root if root in sizes else ""
        sizes[kind] += p.local_size * placed.pieces(p) / (stacked if kind == "layers" else 1)
    return max(sizes["layers"], sizes["last"]) + sizes[""]


def head_block(plan: Plan, placed: Placed) -> float:
    """The logits of a block of tokens and what is made of them."""
    rows = placed.model.vocab_size // placed.split("vocab")
    mine = -(-plan.micro_rows // placed.shards) * plan.response
    return 3 * min(mine, block_tokens(rows, platform=plan.platform)) * rows * FLOAT32


def is_dense(plan: Plan, placed: Placed) -> bool:
    """Whether XLA makes the grouped products of a mixture dense ones over all experts of a device:
    its CPU backend does."""
    return placed.model.num_experts > 0 and plan.platform == "cpu"


def dense_mixture(plan: Plan, placed: Placed, tokens: int, *, trains: bool = False) -> Parts:
    """What that takes in one layer: rows spread out over the experts, zero but at their own, for
    one product at a time, and the kernels in another order. The backward pass has all at once: the
    inputs of gate and up, their two gradients in two forms each, the input of down, and its
    gradient in two forms."""
    if not is_dense(plan, placed):
        return {}
    w, here = widths(placed), placed.model.num_experts / placed.axis("expert")
    outer, inner = here * w.routed, here * w.inner
    spread = tokens * (3 * outer + 5 * inner if trains else max(outer, inner))
    kernels = 3 * here * w.model * w.inner / placed.model.experts_per_token
    # narrower types are widened for it
    return {"rows spread over experts": (spread + kernels) * FLOAT32}


def _layer(w: Widths) -> float:
    """Numbers per token that one layer computes, scores aside: norms, projections, rotations,
    their sums, the MLP."""
    return 5 * w.model + 4 * w.queries + 4 * w.keys + 4 * w.inner + 5 * w.routed


def _forward(plan: Plan, placed: Placed) -> float:
    """Those alive at once when nothing is kept: the stream, its norm, and attention or MLP; a
    mixture has its tokens sorted, masked, computed and put back."""
    w = widths(placed)
    mlp = 2 * w.inner + 2 * w.routed if is_dense(plan, placed) else 3 * w.inner + 4 * w.routed
    return 2 * w.model + max(3 * w.queries + 3 * w.keys, mlp)


def _score_bytes(size: int) -> int:
    """Scores and their softmax in float32, and the softmax in the compute type if that differs."""
    return 2 * FLOAT32 + (size if size < FLOAT32 else 0)


def _scores(placed: Placed, rows: int, columns: int) -> float:
    heads = placed.model.num_heads / placed.split("heads")
    return rows * heads * min(columns, QUERIES) * columns
