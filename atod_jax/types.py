"""The shared vocabulary: device trees that cross module borders (host records: `records`).

Axes, everywhere the same letters:
    P tasks per step, G rollouts per task, B = P*G trajectories, K turns, N rows (one row = one
    turn, padded to a fixed count), R response columns, V vocabulary, D width; L lines of W columns
    with places for M turns, N = L*M.

A row is a prompt and the action the student sampled for it. What a model reads are lines: several
rows one after another, so that hardly anything computed is padding. Every per-token stream of the
method is a plain [N, R] array, actions padded on the right. Streams are indexed by the token they
describe (never shifted); natural logarithms, so units are nats.

Padding rows carry `traj = B` (one past the last trajectory) and an all-false `action_mask`;
`segment_sum(..., num_segments=B)` drops them without a branch.
"""

from typing import Any

from flax import struct
from jaxtyping import Array, Bool, Float, Int

# Mesh axes, by what they split.
BATCH_AXES = ("data", "fsdp")  # the rows of a batch
TENSOR_AXIS = "tensor"  # the vocabulary of a head, the inner width of an MLP
EXPERT_AXIS = "expert"  # the experts of a mixture

AnyArray = Any  # an array of a device or, on the host, of NumPy, or only its shape and type


class Lines(struct.PyTreeNode, kw_only=True):
    """What a model reads: the rows of a line one after another from column 0, each its prompt and
    all of its action but the last token, which predicts nothing."""

    tokens: Int[AnyArray, "L W"]
    prompt_length: Int[AnyArray, "N"]  # of row m of line l at l*M + m; 0 on padding rows


class Rows(struct.PyTreeNode, kw_only=True):
    """Model inputs, one row per turn."""

    lines: Lines | None = None  # None: nothing is read, for what is computed from streams alone
    action: Int[AnyArray, "N R"]  # right-padded
    action_mask: Bool[AnyArray, "N R"]  # True where the student sampled the token
    sampler_logp: Float[AnyArray, "N R"]
    traj: Int[AnyArray, "N"]  # = B on padding rows
    turn: Int[AnyArray, "N"]  # 0-based index inside its trajectory
    action_valid: Bool[AnyArray, "N"]
    reward: Float[AnyArray, "N"]  # of the environment, for this turn
    anchor: Int[AnyArray, "N"]  # rows that answered the same observation share it


class TurnBatch(struct.PyTreeNode, kw_only=True):
    """One step of experience: rows plus the table of trajectories they belong to."""

    rows: Rows
    returns: Float[AnyArray, "B"]  # summed environment reward
    group: Int[AnyArray, "B"]  # trajectories of one task share a group; ids are 0..P-1
    teacher_lines: Lines | None = None  # what the teacher reads; None: the same


class TokenStats(struct.PyTreeNode, kw_only=True):
    """What a model says about the sampled tokens; zero where `action_mask` is false. Nats."""

    logp: Float[Array, "N R"]
    entropy: Float[Array, "N R"]
    states: Float[Array, "L A D"] | None = (
        None  # of the action tokens, where an exact KL needs them
    )
    teacher_logp: Float[Array, "N R"] | None = None  # these two with a teacher's states only
    reverse_kl: Float[Array, "N R"] | None = None  # KL(student || teacher) over the vocabulary


class Signal(struct.PyTreeNode, kw_only=True):
    """What the learner executes, whatever the algorithm.

    Per action token the loss is
        surrogate(logp, old_logp, advantage) - ce_weight logp
        + kl_weight KL(student || teacher) + gate_weight g (teacher_logp - logp),
    g = sigmoid(beta (teacher_logp - logp)) without gradient. A stream that is None is not there.
    How tokens are averaged is not the algorithm's business: see `core.aggregation`.
    """

    advantage: Float[Array, "N R"]
    old_logp: Float[Array, "N R"] | None = None  # None: no surrogate, whatever the advantage
    ce_weight: Float[Array, "N R"] | None = None  # cross-entropy on the sampled ids (supervised)
    kl_weight: Float[Array, "N R"] | None = None  # exact reverse KL over the vocabulary
    gate_weight: Float[Array, "N R"] | None = None  # gated distillation (SDAR)
    teacher_logp: Float[Array, "N R"] | None = None  # with gate_weight
    reference_logp: Float[Array, "N R"] | None = None  # of the start weights, for the k3 loss
    distill: Float[Array, "N R"] | None = None  # of the advantage, the teacher's part; to be seen
    diagnostics: dict[str, "Mean"]


class Mean(struct.PyTreeNode, kw_only=True):
    """A weighted mean as (sum, weight), so adding over micro-batches and hosts is exact."""

    total: Float[Array, ""]
    weight: Float[Array, ""]

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(total=self.total + other.total, weight=self.weight + other.weight)

    def value(self) -> float:
        """The mean as a Python float; nan when nothing was counted."""
        weight = float(self.weight)
        return float(self.total) / weight if weight else float("nan")


class TrainState(struct.PyTreeNode, kw_only=True):
    """Everything that defines the future of a run. `step` counts iterations (one rollout each)."""

    step: Int[Array, ""]
    params: Any  # what trains, see `models.LanguageModel.split`
    frozen: Any = None  # the rest of the model's parameters; never donated, copied or saved
    opt_state: Any
