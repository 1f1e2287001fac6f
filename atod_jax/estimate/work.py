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

from atod_jax.estimate.memory import FLOAT32, cache, local, widths
from atod_jax.estimate.plan import Parameter, Plan, item_bytes, parameters
from atod_jax.models import ModelConfig
from atod_jax.models.layers import QUERIES

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
    """The phases of one training iteration, evaluations aside."""
    found = {}
    if plan.plays:
        at_once = min(plan.sampled or plan.episodes, plan.episodes)
        rows, pieces = -(-at_once // plan.shards), -(-plan.episodes // at_once)
        found["prompts"] = prompts(plan, rows).times(plan.turns * pieces)
        found["actions"] = actions(plan, rows).times(plan.turns * pieces)
    micros = plan.minibatches * plan.minibatch_rows // plan.micro_rows
    found["student scoring"] = score(plan, plan.student).times(micros)
    if plan.teacher:
        found["teacher scoring"] = score(plan, plan.teacher).times(micros)
    found["update"] = train(plan).times(micros) + optimise(plan).times(plan.minibatches)
    return found


def prompts(plan: Plan, rows: int) -> Work:
    """Reading the prompts of one turn; `rows` of them on this device."""
    return forward(plan, plan.student, rows, plan.prompt)


def actions(plan: Plan, rows: int) -> Work:
    """Sampling one action, its last token not fed: a step per token."""
    return step(plan, plan.student, rows).times(plan.response)


def score(plan: Plan, config: ModelConfig) -> Work:
    """One micro-batch through a model and its head."""
    rows = plan.micro_rows // plan.shards
    return forward(plan, config, rows, plan.columns) + head(plan, config, rows)


def train(plan: Plan) -> Work:
    """One micro-batch forward and backward; the backward pass costs two forward ones."""
    config, rows = plan.student, plan.micro_rows // plan.shards
    passes = 3 + RECOMPUTED[config.remat]
    once = forward(plan, config, rows, plan.columns)
    both = Work(once.flops * passes, once.memory * passes, {})
    if plan.columns > QUERIES:  # scores are made once more
        pairs = rows * config.num_layers * plan.columns**2
        both += Work(4 * pairs * widths(config, plan).queries)
    gathers = 2  # forward, and once more for the backward pass
    params = parameters(config, plan.mesh)
    links = {
        "fsdp": gathers * gather_bytes(plan, params, item_bytes(config))
        + gather_bytes(plan, params, FLOAT32),
        "tensor": passes * once.links.get("tensor", 0.0),
        "expert": passes * once.links.get("expert", 0.0),
        # gradients are summed over the copies of the weights after every micro-batch
        "data": _ring(plan, "data", 2 * FLOAT32 * local(params)),
    }
    accumulate = 3 * FLOAT32 * local(params)  # read twice, written once
    return both + head(plan, config, rows).times(4) + Work(0.0, accumulate, links)


def optimise(plan: Plan) -> Work:
    """One step of AdamW: weights, gradients and two moments read, all but gradients written."""
    size = local(parameters(plan.student, plan.mesh))
    return Work(15.0 * size, 7 * FLOAT32 * size)


# ------------------------------------------------------------------- passes through a model


def forward(plan: Plan, config: ModelConfig, rows: int, columns: int) -> Work:
    """`rows` rows of `columns` columns each, on one device."""
    w, size, tokens = widths(config, plan), item_bytes(config), rows * columns
    params = parameters(config, plan.mesh)
    weights = local(params) * plan.axis("fsdp")
    pairs = rows * config.num_layers * columns**2
    flops = 2 * tokens * active(plan, config) + 4 * pairs * w.queries
    heads = config.num_heads / plan.axis("tensor")
    # scores are written, read for the softmax, written and read for the values
    memory = weights * size + 4 * FLOAT32 * pairs * heads
    memory += 2 * tokens * config.num_layers * (w.model * 4 + w.queries * 3 + w.inner * 3) * size
    sums = 2 * config.num_layers * tokens * w.model * size
    links = {
        "fsdp": gather_bytes(plan, params, size),
        "tensor": _ring(plan, "tensor", 2 * sums),
        "expert": _ring(plan, "expert", sums) if config.num_experts else 0.0,
    }
    return Work(flops, memory, links)


def step(plan: Plan, config: ModelConfig, rows: int) -> Work:
    """One token of each row, with the cache of all columns before it."""
    w, size = widths(config, plan), item_bytes(config)
    params, fsdp = parameters(config, plan.mesh), plan.axis("fsdp")
    side_by_side = rows * fsdp  # rows whose one column every device of the fsdp axis works on
    pairs = rows * config.num_layers * plan.columns
    table = config.vocab_size / plan.axis("tensor") / fsdp * config.hidden_size
    flops = 2 * side_by_side * (active(plan, config) / fsdp + table) + 4 * pairs * w.queries
    read = sum(p.local_size * min(1.0, side_by_side * _share(config, p)) for p in params)
    stored = FLOAT32 if config is plan.student else size
    memory = read * stored + cache(plan, config, rows, plan.columns)
    memory += 4 * FLOAT32 * rows * config.vocab_size / plan.axis("tensor")
    # experts are gathered whole, as for many columns
    wide = w.queries + 2 * w.keys + (0 if config.num_experts else 2 * w.inner)
    experts = tuple(p for p in params if "expert" in p.logical)
    links = {
        "fsdp": gather_bytes(plan, experts, size)
        + _ring(plan, "fsdp", 2 * config.num_layers * side_by_side * wide * size)
        + _ring(plan, "fsdp", 2 * side_by_side * config.vocab_size / plan.axis("tensor") * FLOAT32),
        "tensor": _ring(plan, "tensor", 4 * config.num_layers * side_by_side * w.model * size),
    }
    # two norms, q k v, o, gate and up on the fsdp axis; o and down on the tensor axis
    per_layer = 5 * (fsdp > 1) + 2 * (plan.axis("tensor") > 1)
    return Work(flops, memory, links, per_layer * config.num_layers)


def head(plan: Plan, config: ModelConfig, rows: int) -> Work:
    """The vocabulary head over every action column."""
    tokens, table = rows * plan.response, config.vocab_size / plan.axis("tensor")
    flops = 2 * tokens * table * config.hidden_size
    return Work(flops, table * config.hidden_size * item_bytes(config))


# ------------------------------------------------------------------- the pieces


def active(plan: Plan, config: ModelConfig) -> float:
    """Weights a token meets on one device once they are gathered, tables aside."""
    found = 0.0
    for p in parameters(config, plan.mesh):
        if not p.name.endswith("/embedding"):
            pieces = plan.axis("fsdp") if "fsdp" in p.mesh_axes else 1
            found += p.local_size * pieces * _share(config, p)
    return found


def _share(config: ModelConfig, p: Parameter) -> float:
    """The part of a parameter that one token uses."""
    return config.experts_per_token / config.num_experts if "expert" in p.logical else 1.0


def gather_bytes(plan: Plan, params: tuple[Parameter, ...], size: int) -> float:
    """Bytes a device sends when all weights are gathered, or their gradients scattered, once."""
    split = [p for p in params if "fsdp" in p.mesh_axes]
    return _ring(plan, "fsdp", size * local(tuple(split)) * plan.axis("fsdp"))


def _ring(plan: Plan, axis: str, size: float) -> float:
    """What each of n devices sends of an array of `size` bytes that all of them end up with."""
    n = plan.axis(axis)
    return size * (n - 1) / n
