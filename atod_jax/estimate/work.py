"""Operations and bytes per device and phase of one iteration, for a roofline.

A product of a token with a weight is two operations. What moves:
- columns in bulk (prompts, scoring, update): on the fsdp axis every device gathers the weights of a
  layer as it comes to it, and scatters their float32 gradients; on the tensor axis the outputs of
  attention and MLP are summed; on the expert axis tokens travel to their experts and back;
- token by token: weights stay where they are, split over fsdp and tensor alike, and the one column
  of all rows of a data shard is summed over the fsdp axis instead.
"""

import dataclasses
from collections.abc import Mapping

from atod_jax.estimate.memory import COPY, FLOAT32, cache, everything, local, widths
from atod_jax.estimate.plan import Parameter, Placed, Plan, parameters, trained
from atod_jax.models.layers import QUERIES
from atod_jax.types import BATCH_AXES

RECOMPUTED = {"none": 0.0, "dots": 0.0, "full": 1.0}  # forward passes made again for the backward


@dataclasses.dataclass(frozen=True)
class Work:
    """Of one device: operations, bytes of its memory, bytes sent per mesh axis, and how often."""

    flops: float = 0.0
    memory: float = 0.0
    links: Mapping[str, float] = dataclasses.field(default_factory=dict)
    messages: float = 0.0  # those that are too small for their bytes to matter

    def __add__(self, other: "Work") -> "Work":
        axes = self.links.keys() | other.links.keys()
        links = {a: self.links.get(a, 0.0) + other.links.get(a, 0.0) for a in sorted(axes)}
        messages = self.messages + other.messages
        return Work(self.flops + other.flops, self.memory + other.memory, links, messages)

    def times(self, n: float) -> "Work":
        """The same n times."""
        links = {axis: n * size for axis, size in self.links.items()}
        return Work(n * self.flops, n * self.memory, links, n * self.messages)


def iteration(plan: Plan) -> Mapping[str, Work]:
    """The phases of one training iteration, evaluations aside; of `runs_on`'s devices."""
    found = {}
    if plan.plays:
        at_once = min(plan.sampled or plan.episodes, plan.episodes)
        rows, pieces = -(-at_once // plan.sampling.shards), -(-plan.episodes // at_once)
        if plan.copies:
            found[COPY] = reshard(plan)
        found["prompts"] = prompts(plan, rows).times(plan.turns * pieces)
        found["actions"] = actions(plan, rows).times(plan.turns * pieces)
    micros = plan.minibatches * plan.minibatch_rows // plan.micro_rows
    found["student scoring"] = score(plan, plan.student).times(micros)
    if plan.scorer:
        found["teacher scoring"] = score(plan, plan.scorer).times(micros)
    found["update"] = train(plan).times(micros) + optimise(plan).times(plan.minibatches)
    return found


def runs_on(plan: Plan, phase: str) -> Placed:
    """The model that a phase of `iteration` runs, and the mesh it is on."""
    if phase == "teacher scoring" and plan.scorer:
        return plan.scorer
    return plan.sampling if phase in (COPY, "prompts", "actions") else plan.student


def reshard(plan: Plan) -> Work:
    """The weights to where the student plays: each device is sent the whole of its new piece, from
    anywhere."""
    old, new = (FLOAT32 * local(everything(p)) for p in (plan.student, plan.sampling))
    return Work(0.0, old + new, {plan.sampling.mesh[0][0]: new})


def prompts(plan: Plan, rows: int) -> Work:
    """Reading the prompts of one turn; `rows` of them on this device."""
    return forward(plan.sampling, rows, plan.prompt)


def actions(plan: Plan, rows: int) -> Work:
    """Sampling one action, its last token not fed: a step per token."""
    return step(plan.sampling, rows, plan.columns).times(plan.response)


def score(plan: Plan, placed: Placed) -> Work:
    """One micro-batch through a model and its head."""
    rows = plan.micro_rows // placed.shards
    return forward(placed, rows, plan.columns) + head(placed, rows * plan.response)


def train(plan: Plan) -> Work:
    """One micro-batch forward and backward; the backward pass costs two forward ones, or one where
    matrices have no gradients of their own (attention has none to spare)."""
    placed, rows = plan.student, plan.micro_rows // plan.student.shards
    config = placed.model
    passes = (2 if placed.adapters else 3) + RECOMPUTED[config.remat]
    once = forward(placed, rows, plan.columns)
    both = Work(once.flops * passes, once.memory * passes, {})
    pairs = rows * config.num_layers * plan.columns**2
    # scores are made once more where they are long
    again = (plan.columns > QUERIES) + (placed.adapters > 0)
    both += Work(again * 4 * pairs * widths(placed).queries)
    accumulate = 3 * FLOAT32 * local(trained(placed))  # read twice, written once
    links = {axis: passes * once.links.get(axis, 0.0) for axis in ("tensor", "expert")}
    links |= {axis: exchanged(placed, axis) for axis in BATCH_AXES}
    products = head(placed, rows * plan.response).times(3 if placed.adapters else 4)
    return both + products + Work(0.0, accumulate, links)


def exchanged(placed: Placed, axis: str) -> float:
    """Bytes sent on an axis that splits rows, after and during every micro-batch: weights stored
    in pieces are gathered twice and their gradients scattered, gradients of copies are summed."""
    learn = trained(placed)
    copied = tuple(p for p in learn if axis not in p.mesh_axes)
    gathers = 2 * gather_bytes(placed, parameters(placed), axis=axis, size=placed.item_bytes)
    scatter = gather_bytes(placed, learn, axis=axis, size=FLOAT32)
    return gathers + scatter + _ring(placed.axis(axis), 2 * FLOAT32 * local(copied))


def optimise(plan: Plan) -> Work:
    """One step of AdamW: weights, gradients and two moments read, all but gradients written."""
    size = local(trained(plan.student))
    return Work(15.0 * size, 7 * FLOAT32 * size)


# ------------------------------------------------------------------- passes through a model


def forward(placed: Placed, rows: int, columns: int) -> Work:
    """`rows` rows of `columns` columns each, on one device."""
    config, w, size, tokens = placed.model, widths(placed), placed.item_bytes, rows * columns
    params = parameters(placed)
    weights = sum(p.local_size * placed.pieces(p) for p in params)
    pairs = rows * config.num_layers * columns**2
    flops = 2 * tokens * active(placed) + 4 * pairs * w.queries
    heads = config.num_heads / placed.split("heads")
    # scores are written, read for the softmax, written and read for the values
    memory = weights * size + 4 * FLOAT32 * pairs * heads
    memory += 2 * tokens * config.num_layers * (w.model * 4 + w.queries * 3 + w.inner * 3) * size
    column = config.num_layers * tokens * w.model * size  # of all layers
    links = {axis: gather_bytes(placed, params, axis=axis, size=size) for axis in BATCH_AXES}
    # the outputs of attention and of the MLP
    links["tensor"] = sum(_ring(placed.split(width), 2 * column) for width in ("heads", "mlp"))
    links["expert"] = _ring(placed.axis("expert"), 2 * column) if config.num_experts else 0.0
    return Work(flops, memory, links)


def step(placed: Placed, rows: int, columns: int) -> Work:
    """One token of each row, with the cache of all `columns` columns before it."""
    config, w, size = placed.model, widths(placed), placed.item_bytes
    params, fsdp = parameters(placed), placed.stored_pieces("embed")
    side_by_side = rows * fsdp  # rows whose one column every device of the fsdp axis works on
    pairs = rows * config.num_layers * columns
    vocab = config.vocab_size / placed.split("vocab")
    table = vocab / fsdp * config.hidden_size
    flops = 2 * side_by_side * (active(placed) / fsdp + table) + 4 * pairs * w.queries
    memory = sum(
        p.local_size * placed.stored_bytes(p) * min(1.0, side_by_side * _share(placed, p))
        for p in params
    )
    memory += cache(placed, rows, columns) + 4 * FLOAT32 * rows * vocab
    # experts are gathered whole, as for many columns
    wide = w.queries + 2 * w.keys + (0 if config.num_experts else 2 * w.inner)
    experts = tuple(p for p in params if "expert" in p.logical)
    links = {
        "fsdp": gather_bytes(placed, experts, axis="fsdp", size=size)
        + _ring(fsdp, 2 * config.num_layers * side_by_side * wide * size)
        + _ring(fsdp, 2 * side_by_side * vocab * FLOAT32),
        "tensor": sum(
            _ring(placed.split(width), 2 * config.num_layers * side_by_side * w.model * size)
            for width in ("heads", "mlp")
        ),
    }
    # two norms, q k v, o, gate and up on the fsdp axis; o and down on the tensor axis
    per_layer = 5 * (fsdp > 1) + (placed.split("heads") > 1) + (placed.split("mlp") > 1)
    return Work(flops, memory, links, per_layer * config.num_layers)


def head(placed: Placed, tokens: int) -> Work:
    """The vocabulary head over `tokens` action columns."""
    table = placed.model.vocab_size / placed.split("vocab") * placed.model.hidden_size
    return Work(2 * tokens * table, table * placed.item_bytes)


# ------------------------------------------------------------------- the pieces


def active(placed: Placed) -> float:
    """Weights a token meets on one device once they are gathered, tables aside."""
    return sum(
        p.local_size * placed.pieces(p) * _share(placed, p)
        for p in parameters(placed)
        if not p.name.endswith("/embedding")
    )


def _share(placed: Placed, p: Parameter) -> float:
    """The part of a parameter that one token uses."""
    config = placed.model
    return config.experts_per_token / config.num_experts if "expert" in p.logical else 1.0


def gather_bytes(placed: Placed, params: tuple[Parameter, ...], *, axis: str, size: int) -> float:
    """Bytes a device sends along an axis when all weights stored in pieces along it are gathered,
    or their gradients scattered, once."""
    split = [p for p in params if axis in p.mesh_axes]
    return _ring(placed.axis(axis), size * local(tuple(split)) * placed.axis(axis))


def _ring(n: int, size: float) -> float:
    """What each of n devices sends of an array of `size` bytes that all of them end up with."""
    return size * (n - 1) / n
